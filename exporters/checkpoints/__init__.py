"""Reads checkpoints as data: nothing in a file is ever imported or called.

pickle_data   interprets a pickle's opcodes over a fixed table of what each global may become
allowed       that table
values        the inert values that come out, and their conversion to plain JSON values
archive       torch's zip and legacy containers, with their bounds
zip_directory how large a zip's directory may be
identify      what a file is, by its content
reader        from a path to a `Checkpoint`: tensors as numpy arrays, configuration, metrics
normalization where a model's per-channel mean and scale come from
"""
