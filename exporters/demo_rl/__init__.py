"""Trains the agents of the demonstration ensemble on real hourly EUR/USD bars, with Stable-Baselines3.

`python -m exporters.demo_rl`. Data, features and parts of the split are those of `exporters.demo`; seeds are fixed.
"""
