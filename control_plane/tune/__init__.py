"""The command `python -m control_plane tune`: finds the running server, measures beside it, reports."""
