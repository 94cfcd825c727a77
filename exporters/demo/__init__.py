"""Trains the two demonstration checkpoints of the hybrid on real hourly EUR/USD bars.

`python -m exporters.demo`. Data and features are fixed; so is the seed, so the checkpoints can be made again.
"""
