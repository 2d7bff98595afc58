"""The training loop: pre-training and instruction tuning, on one CPU or many GPUs."""
