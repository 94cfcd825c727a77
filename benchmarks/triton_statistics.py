"""What Triton itself counts of a model: how long requests were in its hands, and how long its instance was busy.

Source: Triton's protocol/extension_statistics.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

_COMPUTE = ("compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonStatistics:
    """Counters since the model was loaded.

    Attributes:
        requests: Requests that succeeded; the dispatcher's merged ones count once.
        request_s: Time from their arrival until their answer, queue included, summed.
        rows: Rows of theirs.
        executions: Executions of the model.
        busy_s: Time that executions took, from gathering inputs until scattering outputs, summed.
    """

    requests: int
    request_s: float
    rows: int
    executions: int
    busy_s: float

    def since(self, earlier: "TritonStatistics") -> "TritonStatistics":
        """What came after."""
        return TritonStatistics(
            requests=self.requests - earlier.requests,
            request_s=self.request_s - earlier.request_s,
            rows=self.rows - earlier.rows,
            executions=self.executions - earlier.executions,
            busy_s=self.busy_s - earlier.busy_s,
        )


def read(triton_http_url: str, model: str) -> TritonStatistics:
    """Asks Triton.

    Raises:
        httpx.HTTPError: it didn't answer, or doesn't hold the model.
    """
    answer = httpx.get(f"{triton_http_url}/v2/models/{model}/stats", timeout=10)
    answer.raise_for_status()
    return parse(answer.json()["model_stats"][0])


def parse(said: Mapping[str, Any]) -> TritonStatistics:
    """One model's entry of the answer."""
    success = said["inference_stats"]["success"]
    return TritonStatistics(
        requests=success["count"],
        request_s=success["ns"] / 1e9,
        rows=said["inference_count"],
        executions=said["execution_count"],
        # By batch size these count executions; by request, each request of a batch would count the whole of it.
        busy_s=sum(row[part]["ns"] for row in said["batch_stats"] for part in _COMPUTE) / 1e9,
    )
