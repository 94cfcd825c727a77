"""The control plane: routes, measures and guards predictions that NVIDIA Triton computes.

Never imports torch or `exporters`; the exporters run as processes of their own.
"""

from importlib.metadata import version

__version__ = version("model-serving")
