"""The one connection to Triton: its gRPC service, with its errors in our terms."""
