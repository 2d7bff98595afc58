"""`vikhr-fast generate`: what a model answers, in the terminal, from file to file, or beside other models."""
