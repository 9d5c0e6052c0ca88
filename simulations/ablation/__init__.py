"""Which part of the method wins how much."""
