"""The data plane: tensors in, calls to Triton, uncertainty and confidence out."""
