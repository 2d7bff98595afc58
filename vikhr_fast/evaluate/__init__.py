"""Section 4 of the paper: what a model knows."""
