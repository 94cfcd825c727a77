"""Turns trained PyTorch models into versions of a Triton model repository.

Its own process, and the only place in the project that imports torch. It never imports `control_plane`;
the two share only the files of the model repository.
"""
