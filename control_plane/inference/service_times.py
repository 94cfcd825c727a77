"""How long Triton works on a call of so many rows. Pure: no clock.

Call times are taken to be affine in the rows, `a + b * rows`, by exponentially weighted least squares over the latest
calls. They are times of service, as of one server that takes one call after the other: from the call's start, or from
the end of the call before it where that came later, to its end. So calls that wait for each other in Triton don't
count twice, and several instances look like one that is so much faster.
"""

_WEIGHT = 0.1
_LEAST_CALLS = 5
_RIDGE = 1e-3
_HEADROOM = 1.4
_CORRECTION_RANGE = (0.5, 4.0)
_RATIO_RANGE = (0.1, 10.0)


class ServiceTimes:
    """What one model's calls have taken lately, in seconds."""

    __slots__ = (
        "_base_s", "_calls", "_correction", "_deviation", "_product", "_rows", "_slope_s", "_square", "_time_s",
        "is_known", "margin",
    )  # fmt: skip

    def __init__(self) -> None:
        self._calls = 0
        self._rows = self._square = self._time_s = self._product = 0.0
        self._base_s = self._slope_s = 0.0
        self._correction, self._deviation = 1.0, 0.0
        self.is_known = False
        """Whether enough calls were seen to say anything."""
        self.margin = _HEADROOM
        """What predictions are multiplied by: how wrong they were lately, how much that varied, and some headroom.

        Under lasting overload all that is let in ends near its deadline; without headroom, half of it just behind. A
        shorter queue costs no throughput: it is enough that something waits whenever a call ends.
        """

    def observe_call(self, rows: int, service_s: float) -> None:
        """Triton worked on a call of so many rows for `service_s` seconds."""
        weight = max(_WEIGHT, 1 / (self._calls + 1))
        self._calls += 1
        self._rows += weight * (rows - self._rows)
        self._square += weight * (rows * rows - self._square)
        self._time_s += weight * (service_s - self._time_s)
        self._product += weight * (rows * service_s - self._product)
        # Rows that hardly varied say nothing of one more row: the ridge lets it fade to none.
        variance = max(0.0, self._square - self._rows * self._rows) + _RIDGE * self._square
        covariance = max(0.0, self._product - self._rows * self._time_s)
        self._slope_s = min(covariance / variance, self._time_s / self._rows)
        self._base_s = self._time_s - self._slope_s * self._rows
        self.is_known = self._calls >= _LEAST_CALLS

    def observe_finish(self, *, expected_s: float, actual_s: float) -> None:
        """A call's requests took `actual_s` seconds together, where `expected_s` was expected, without the margin."""
        if expected_s <= 0:
            return
        low, high = _RATIO_RANGE
        ratio = min(max(actual_s / expected_s, low), high)
        self._deviation += _WEIGHT * (abs(ratio - self._correction) - self._deviation)
        low, high = _CORRECTION_RANGE
        self._correction = min(max(self._correction + _WEIGHT * (ratio - self._correction), low), high)
        self.margin = (self._correction + self._deviation) * _HEADROOM

    def call_s(self, rows: float) -> float:
        """The expected time of a call of so many rows; 0 before the first was seen."""
        return self._base_s + self._slope_s * rows

    def rows_within(self, time_s: float) -> float:
        """The rows of a call that takes `time_s` seconds; infinity where more rows take no longer."""
        return (time_s - self._base_s) / self._slope_s if self._slope_s > 0 else float("inf")
