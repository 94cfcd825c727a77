"""Seeded simulations of what learns, on the real code: `python -m benchmarks.simulate --quick|--full [NAME…]`."""
