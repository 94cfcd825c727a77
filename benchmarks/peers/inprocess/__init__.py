"""This peer; runs in its own environment."""
