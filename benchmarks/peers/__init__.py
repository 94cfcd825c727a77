"""The peers: other ways to serve the same ONNX graph, each in its own environment. See README.md beside this file."""
