"""Canaries, harmless and harmful, through the code that rolls real ones back."""

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.simulate.experiments_sequences import NEVER
from control_plane.experiments.assignment import canary_shares
from control_plane.experiments.canary import Action, CanaryState, Step, next_step
from control_plane.experiments.creation import DEFAULT_GUARDRAILS, DEFAULT_STEPS
from control_plane.experiments.design import Design, Direction, Guardrail, Metric, MetricKind
from control_plane.experiments.guardrails import Observed, judge
from control_plane.experiments.moments import BUCKETS, Floats, add, empty
from control_plane.experiments.sketch import Sketch

METRICS = (
    Metric(name="latency", kind=MetricKind.LATENCY, direction=Direction.DOWN),
    Metric(name="error", kind=MetricKind.ERROR, direction=Direction.DOWN),
)
ALPHA = 0.05
WITHIN = 500
"""Of the treatment's requests, in which harm is to be found."""
_CENTRE_MS = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A setting.

    Attributes:
        text: What it is, for the page.
        slower: The treatment's latency over the control's.
        failing: The treatment's error rate.
        base: The control's.
        spread: Sd of the latency's logarithm.
        accounts: That are alike within: a third of them twice as slow, one in a hundred fails half of its requests;
            0: requests are independent.
        guardrails: With which it is watched.
        steps: Its steps.
        requests: Of the treatment, until the simulation ends.
        every: Of the treatment's requests, between looks.
    """

    text: str
    slower: float = 1.0
    failing: float = 0.002
    base: float = 0.002
    spread: float = 0.2
    accounts: int = 0
    guardrails: tuple[Guardrail, ...] = DEFAULT_GUARDRAILS
    steps: tuple[Step, ...] = DEFAULT_STEPS
    requests: int = 1500
    every: int = 50

    @property
    def design(self) -> Design:
        """As the service makes it."""
        return Design(
            variants=("control", "treatment"),
            metrics=METRICS,
            alpha=ALPHA,
            guardrails=self.guardrails,
            planned_epochs=len(self.steps),
            units_are_requests=not self.accounts,
        )


_ALLOWED = {one.metric: one for one in DEFAULT_GUARDRAILS}
HARMLESS = (
    Canary(text="the same model"),
    Canary(
        text="as much slower, and as much more failing, as is allowed",
        slower=_ALLOWED["latency"].max_ratio or 1.0,
        failing=0.002 + (_ALLOWED["error"].max_difference or 0.0),
    ),
    Canary(text="the same model, accounts that differ", accounts=2000),
)
FAILING = Canary(text="fails in 5 %", failing=0.05, requests=WITHIN, every=10)
SLOW = tuple(
    Canary(text=f"30 % slower, spread {spread:g}", slower=1.3, spread=spread, requests=WITHIN, every=10)
    for spread in (0.1, 0.2, 0.3)
)
HARMFUL = (FAILING, *SLOW)


def varied(canary: Canary, *, max_ratio: float, requests: int) -> Canary:
    """The canary with another limit of the latency, and another least number of requests of each step."""
    guardrails = tuple(
        replace(one, max_ratio=max_ratio) if one.metric == "latency" else one for one in canary.guardrails
    )
    steps = tuple(replace(step, requests=requests) for step in canary.steps)
    return replace(canary, guardrails=guardrails, steps=steps)


def rolled_back_at(canary: Canary, *, runs: int, seed: tuple[int, ...]) -> Floats:
    """After how many of the treatment's requests each was rolled back, float64 [runs]; `NEVER`: not at all."""
    return np.array([_one(canary, np.random.default_rng([*seed, run])) for run in range(runs)])


class _Watched:
    """One canary's counts: moments [epochs, variants, 256, moments] by metric, sketches [epochs][variants]."""

    def __init__(self, canary: Canary, draw: np.random.Generator) -> None:
        self._canary, self._draw = canary, draw
        accounts = max(canary.accounts, 1)
        self._places, self._buckets = draw.random(accounts), draw.integers(0, BUCKETS, accounts)
        self._slow = np.where(draw.random(accounts) < 1 / 3, 2.0, 1.0) if canary.accounts else np.ones(1)
        self._failing = (draw.random(accounts) < 0.01) * (0.5 if canary.accounts else 0.0)
        self.moments = {metric.name: empty(0, 2) for metric in METRICS}
        self.sketches: list[list[Sketch]] = []

    def begin_epoch(self) -> None:
        """Counts of their own."""
        for name, moments in self.moments.items():
            self.moments[name] = np.concatenate([moments, empty(1, 2)])
        self.sketches.append([Sketch(), Sketch()])

    def receive(self, requests: int, share: float) -> int:
        """Divides and counts requests; how many were the treatment's."""
        canary, draw = self._canary, self._draw
        end = canary_shares(share, control=0)[0]
        if canary.accounts:
            unit = draw.integers(0, canary.accounts, requests)
            treated, buckets = self._places[unit] >= end, self._buckets[unit]
            slow, failing = self._slow[unit], self._failing[unit]
        else:
            treated, buckets = draw.random(requests) >= end, draw.integers(0, BUCKETS, requests)
            slow, failing = np.ones(requests), np.zeros(requests)
        ms = _CENTRE_MS * slow * draw.lognormal(0.0, canary.spread, requests)
        ms *= np.where(treated, canary.slower, 1.0)
        rate = np.maximum(failing, np.where(treated, canary.failing, canary.base))
        failed = draw.random(requests) < rate
        for arm, mine in enumerate((~treated, treated)):
            answered = mine & ~failed
            add(self.moments["error"][-1, arm], buckets[mine], failed[mine] * 1.0)
            add(self.moments["latency"][-1, arm], buckets[answered], np.log(ms[answered]))
            self.sketches[-1][arm].add(ms[answered])
        return int(treated.sum())

    def broken(self) -> list[str]:
        """The reasons of guardrails that don't hold."""
        design, found = self._canary.design, []
        for guardrail in design.guardrails:
            arms = [
                Observed(
                    name=design.variants[arm],
                    moments=self.moments[guardrail.metric][:, arm],
                    sketches=[epoch[arm] for epoch in self.sketches],
                )
                for arm in (1, 0)
            ]
            one = judge(
                guardrail, design, treatment=arms[0], control=arms[1], started=True, planned_information=0.0
            )
            if one.reason is not None:
                found.append(one.reason)
        return found


def _one(canary: Canary, draw: np.random.Generator) -> float:
    watched = _Watched(canary, draw)
    steps, step, in_step, seen = canary.steps, 0, 0, 0
    watched.begin_epoch()
    while seen < canary.requests:
        share = steps[step].share
        treated = watched.receive(round(min(canary.every, canary.requests - seen) / share), share)
        seen, in_step = seen + treated, in_step + treated
        state = CanaryState(steps=steps, step=step, step_began_s=0.0, auto_promote=False)
        decision = next_step(state, now_s=steps[step].duration_s, requests=in_step, broken=watched.broken())
        if decision.action is Action.ROLLBACK:
            return float(seen)
        if decision.action is Action.STEP:
            step, in_step = step + 1, 0
            watched.begin_epoch()
    return NEVER
