"""AnchorOPT as in the paper: anchors, positions, objective; plain PyTorch, for any prompt."""
