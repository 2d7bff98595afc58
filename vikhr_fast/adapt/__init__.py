"""A model's embedding and LM head rebuilt for another vocabulary (paper, section 3.1)."""
