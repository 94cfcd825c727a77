"""A real Triton and a real Redis from installed wheels, for one machine."""
