"""Experiments between versions of a model: A/B, shadow, canary and bandit, with statistics that hold at any time."""
