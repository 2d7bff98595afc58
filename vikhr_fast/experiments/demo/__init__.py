"""`vikhr-fast demo`: an English model learns Russian, end to end on one machine."""
