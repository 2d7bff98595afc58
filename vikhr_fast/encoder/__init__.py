"""A small encoder with one output: quality classifier and reward model."""
