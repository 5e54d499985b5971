"""CLIP, loaded, and both of its towers: exact, but faster."""
