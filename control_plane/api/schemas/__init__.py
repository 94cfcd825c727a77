"""Pydantic models of the REST API: they validate the control plane's requests, and describe the data plane's."""
