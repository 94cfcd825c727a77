"""Inference in memory: a real function of its input that takes time, may fail, and writes down each call."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from control_plane.errors import InferenceFailed
from control_plane.inference.dispatcher import Dispatcher, DispatcherLimits
from tests.unit.inference.virtual_time import now

BAD = -1.0
SERVICE_S = 0.1


@dataclass
class Call:
    """One call: when it began, and the first column of its rows."""

    began: float
    values: list[float]
    outputs: tuple[str, ...]
    timeout_s: float


@dataclass
class Doubler:
    """y = 2x, [batch, 1]. A row of BAD fails its whole call, as a model that chokes on a value does."""

    service_s: Callable[[int], float] = lambda _: SERVICE_S
    error: Callable[[int], Exception | None] = lambda _: None
    calls: list[Call] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def __call__(
        self, model: str, inputs: Mapping[str, Any], outputs: Sequence[str], *, timeout_s: float
    ) -> dict[str, Any]:
        assert model == "doubler-v1"
        x = inputs["x"]
        self.calls.append(Call(now(), x[:, 0].tolist(), tuple(outputs), timeout_s))
        number = len(self.calls)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.service_s(number))
        finally:
            self.in_flight -= 1
        if (error := self.error(number)) is not None:
            raise error
        if (x[:, 0] == BAD).any():
            raise InferenceFailed("a bad row")
        return {name: np.multiply(x, 2) for name in outputs}

    def sent(self) -> list[float]:
        """The first column of all rows, in the order in which they were sent."""
        return [value for call in self.calls for value in call.values]


def dispatcher(infer: Any, **limits: Any) -> Dispatcher:
    """A dispatcher in virtual time: one call of at most 8 rows in flight, 100 waiting, unless told otherwise."""
    bounds = {"max_rows": 8, "calls_in_flight": 1, "max_queue_size": 100} | limits
    return Dispatcher(
        model="doubler-v1",
        infer=infer,
        limits=DispatcherLimits(**bounds),
        clock=asyncio.get_running_loop().time,
    )


def rows(*values: float) -> dict[str, Any]:
    """One row a value."""
    return {"x": np.array(values, dtype=np.float32)[:, None]}


async def submit(target: Dispatcher, *values: float, **options: Any) -> list[float]:
    """Submits a request of one row a value, and gives its answer as a list."""
    arguments = {"lane": "lane", "deadline": now() + 60.0, "outputs": ("y",)} | options
    outputs = arguments.pop("outputs")
    answer = await target.submit(rows(*values), outputs, **arguments)
    return [float(value) for value in answer[outputs[0]][:, 0]]
