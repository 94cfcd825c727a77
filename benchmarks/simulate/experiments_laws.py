"""Laws of made-up experiments: who asks, and what comes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from control_plane.experiments.moments import Floats, Integers
from control_plane.experiments.simulation import Change

METRIC = "outcome"
ACCOUNTS = 200
Draw = np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """How outcomes arise.

    Attributes:
        text: What it is, for the page.
        noise: From a shape to noise with sd 1 and mean 0.
        rate: Share of ones, for 0 and 1 instead of noise.
        effect: Sd of an account's own level, in the noise's.
        memory: Correlation of an account's successive noises.
        accounts: That are active at a time.
        stay: Requests of all after which one of the accounts leaves, and another comes for it; 0: all stay.
        uneven: Sd of the logarithm of how often an account asks.
        drift: The level's change over the planned requests: added to the noise, or that the rate is multiplied with.
    """

    text: str
    noise: Callable[[Draw, tuple[int, ...]], Floats] = Draw.standard_normal
    rate: float | None = None
    effect: float = 0.0
    memory: float = 0.0
    accounts: int = ACCOUNTS
    stay: int = 0
    uneven: float = 0.0
    drift: float = 0.0

    @property
    def variance(self) -> float:
        """Of one request."""
        return self.rate * (1 - self.rate) if self.rate is not None else 1.0 + self.effect**2

    def effect_found(self, standard_errors: float, requests: int) -> float:
        """The treatment's effect that is so many standard errors at a number of requests, split evenly.

        For independent requests; of a rate with the treatment's own variance.
        """
        found = standard_errors * np.sqrt(4 * self.variance / requests)
        if self.rate is not None:
            for _ in range(50):
                other = (self.rate + found) * (1 - self.rate - found)
                found = standard_errors * np.sqrt(2 * (self.variance + other) / requests)
        return float(found)

    def change(self, effect: float, draw: Draw) -> Change:
        """What a treatment with that effect makes of outcomes. Of 0 and 1 it turns zeros into ones."""
        if self.rate is None:
            return lambda y: y + effect
        share = effect / (1 - self.rate)
        return lambda y: np.maximum(y, (draw.random(y.shape) < share).astype(np.float64))


def _t3(draw: Draw, shape: tuple[int, ...]) -> Floats:
    return draw.standard_t(3, shape) / np.sqrt(3)


BERNOULLI = Law(text="Bernoulli(0.02)", rate=0.02)
NORMAL = Law(text="normal", noise=Draw.standard_normal)
STUDENT = Law(text="Student's t, 3 degrees of freedom", noise=_t3)
ALIKE = Law(text="accounts with an effect", effect=0.5)
AR1 = Law(text="AR(1) 0.3 within accounts", memory=0.3)
COMING = Law(text="accounts with an effect that come and go", effect=0.5, stay=10)
UNEVEN = Law(text="accounts with an effect, some busier", effect=0.5, uneven=1.0)
LAWS = (BERNOULLI, NORMAL, STUDENT, ALIKE, AR1, COMING, UNEVEN)
"""The first five are asked for."""
DRIFTING = (
    Law(text="normal, level rises by 2 sd", accounts=2000, drift=2.0),
    Law(text="accounts with an effect, level rises by 2 sd", effect=0.5, accounts=2000, drift=2.0),
    Law(text="Bernoulli, 0.02 rises to 0.08", rate=0.02, accounts=2000, drift=4.0),
)


class Accounts:
    """A law's accounts, in many experiments; a `Population`.

    Args:
        law: How outcomes arise.
        experiments: How many, side by side.
        planned_requests: Over which the level drifts.
        requests: How many there will be, for those that come and go.
        draw: Random numbers.
    """

    def __init__(
        self, law: Law, *, experiments: int, planned_requests: int, requests: int, draw: Draw
    ) -> None:
        self._law, self._draw, self._planned = law, draw, planned_requests
        self.experiments = experiments
        self.units = law.accounts + (requests // law.stay if law.stay else 0)
        shape = (experiments, self.units)
        self._own = law.effect * draw.standard_normal(shape) if law.effect else None
        self._last = law.noise(draw, shape) if law.memory else None
        self._activity = np.exp(law.uneven * draw.standard_normal(shape))
        self._rows = np.arange(experiments)[:, np.newaxis]
        self._seen = 0

    def arrive(self, requests: int) -> Integers:
        """Active accounts; with a memory or uneven ones different ones each, so that they can be drawn at once."""
        law = self._law
        first = self._seen // law.stay if law.stay else 0
        shape = (self.experiments, law.accounts)
        if not law.memory and not law.uneven:
            return first + self._draw.integers(0, law.accounts, (self.experiments, requests))
        waits = self._draw.standard_exponential(shape) / self._activity[:, first : first + law.accounts]
        found: Integers = first + np.argpartition(waits, requests, axis=1)[:, :requests]
        return found

    def answer(self, unit: Integers) -> Mapping[str, Floats]:
        """The control's outcomes."""
        law, shape = self._law, unit.shape
        time = (self._seen + np.arange(shape[1])) / self._planned
        self._seen += shape[1]
        if law.rate is not None:
            rate = law.rate * (1.0 + (law.drift - 1.0) * time) if law.drift else law.rate
            return {METRIC: (self._draw.random(shape) < rate).astype(np.float64)}
        y = law.noise(self._draw, shape)
        if self._last is not None:
            y = law.memory * self._last[self._rows, unit] + np.sqrt(1 - law.memory**2) * y
            self._last[self._rows, unit] = y
        if self._own is not None:
            y = y + self._own[self._rows, unit]
        return {METRIC: y + law.drift * time if law.drift else y}
