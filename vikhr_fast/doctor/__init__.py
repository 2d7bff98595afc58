"""What to know before a command is run: of this machine, of a model, of data."""
