"""This peer's server; runs in its own environment."""
