"""Callers of the prediction endpoint that remember what they got, for tests under load."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.repository import FEATURES, marker_of

ROW = [0.25] * FEATURES


@dataclass
class Tally:
    """What came back."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    transport_errors: list[str] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All answers and transport errors."""
        return sum(self.statuses.values()) + len(self.transport_errors)


@dataclass(frozen=True)
class Target:
    """A version to ask, and what names may be behind it."""

    model_type: str
    version: str
    may_be: tuple[str, ...] = ()

    def body(self) -> dict[str, Any]:
        """The request."""
        return {"model_type": self.model_type, "model_version": self.version, "data": [ROW]}

    def complaint(self, answer: dict[str, Any]) -> str | None:
        """What is wrong with an answer: another version's, or its label."""
        named = answer["model_version"]
        allowed = self.may_be or (self.version,)
        value = answer["predictions"]["y"][0][0]
        if named not in allowed:
            return f"asked {self.version}, answered by {named}"
        if abs(value - ROW[0] - marker_of(self.model_type, named)) > 1e-2:
            return f"labelled {named}, but computed {value}"
        return None


async def call(client: httpx.AsyncClient, target: Target, tally: Tally) -> None:
    """One prediction, noted."""
    try:
        response = await client.post("/api/v1/predict", json=target.body())
    except httpx.HTTPError as error:
        tally.transport_errors.append(repr(error))
        return
    tally.statuses[response.status_code] += 1
    if response.status_code == 200:
        if complaint := target.complaint(response.json()):
            tally.wrong.append(complaint)
    else:
        tally.problems.append(response.json() | {"retry_after": response.headers.get("retry-after")})


async def drive(
    url: str,
    targets: Sequence[Target],
    *,
    callers: int,
    count: int | None = None,
    until: asyncio.Event | None = None,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    timeout_s: float = 120.0,
    on_answer: Callable[[Tally], None] | None = None,
) -> Tally:
    """`callers` concurrent callers ask random targets, `count` times in all, or until the event."""
    tally = Tally()
    chance = random.Random(seed)
    numbers = itertools.count()

    async def caller(client: httpx.AsyncClient) -> None:
        while (count is None or next(numbers) < count) and not (until is not None and until.is_set()):
            await call(client, chance.choices(targets, weights)[0], tally)
            if on_answer is not None:
                on_answer(tally)

    limits = httpx.Limits(max_connections=callers, max_keepalive_connections=callers)
    async with (
        httpx.AsyncClient(base_url=url, timeout=timeout_s, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(callers):
            group.create_task(caller(client))
    return tally
