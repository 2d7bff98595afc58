"""The demo, and the paper's ablations, as grids of this package's own commands."""
