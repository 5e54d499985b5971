"""Try a host out: on a small random CLIP and generated pictures, with nothing downloaded."""
