"""The sample data that the demo and the small ablations learn from."""
