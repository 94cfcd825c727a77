"""The size of a model's calls, measured: how many rows one call to Triton carries, and how many calls are in flight.

`choice.py` decides, purely; `measurement.py` measures; `tuner.py` does both for a loaded version and writes its card;
`configurations.py` and `search.py` try other instance counts and threads.
"""
