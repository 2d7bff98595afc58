"""`vikhr-fast report`: whatever a command left in a directory, as one HTML page or as tables."""
