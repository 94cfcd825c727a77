"""The graph that all peers run, opened as the embedded Triton's backend opens it: one thread inside an operator, one
between operators, no spinning. Runs in the peers' environments: numpy and ONNX Runtime only.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.peers.answer import Fields, Floats, fields_of, rows_of

OUTPUTS = [
    "classification_probs",
    "regression_pred",
    "member_probs",
    "member_regression",
    "ensemble_weights",
    "mc_regression",
    "mc_probs",
]


class Graph:
    """One session; its calls may come from several threads."""

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        """Opens `model.onnx`.

        Args:
            path: The file.
            threads: Inside an operator; the embedded Triton's backend takes 1.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, window: Floats) -> Fields:
        """The answer's fields for float32 [batch, channels, time]."""
        outputs = self._session.run(OUTPUTS, {"x": window})
        return fields_of(dict(zip(OUTPUTS, outputs, strict=True)))

    def run_merged(self, windows: Sequence[Floats]) -> list[Fields]:
        """The same for several requests in one call."""
        if len(windows) == 1:
            return [self.run(windows[0])]
        return list(rows_of(self.run(np.concatenate(windows)), [len(item) for item in windows]))
