"""How many requests, and how long: for a test at the end, and for one that may be looked at all the time. Pure.

Source: for the fixed one any textbook, such as J. L. Fleiss, B. Levin, M. C. Paik, "Statistical Methods for Rates and
Proportions", 3rd ed., 2003, section 4.2 (without continuity correction); for the always-valid one the width of the
confidence sequence of sequential.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.experiments.sequential import half_width, planned_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What one method takes.

    Attributes:
        requests: Of the whole experiment.
        per_variant: In declared order.
        duration_s: At the given traffic; None without.
    """

    requests: int
    per_variant: tuple[int, ...]
    duration_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What it takes to find an effect.

    Attributes:
        fixed: Looked at once, at the end.
        always_valid: Looked at any time; found by then with at least the wanted power (it may be found before).
        typical: When the always-valid verdict is found in half of the cases, at the latest.
    """

    fixed: Method
    always_valid: Method
    typical: Method


def plan_mean(
    *,
    sd: float,
    effect: float,
    shares: Sequence[float],
    control: int = 0,
    alpha: float = 0.05,
    power: float = 0.8,
    requests_per_hour: float | None = None,
    design_effect: float = 1.0,
) -> Plan:
    """For a mean, and for latency with the sd and the effect on the scale of its logarithm (ln 1.1 for 10 % more).

    Args:
        sd: Of one request.
        effect: The difference to be found, not 0.
        shares: Of the variants.
        control: Place of the control; the treatment with the smallest share decides.
        alpha: Two-sided.
        power: Wanted chance to find the effect.
        requests_per_hour: Of the whole experiment.
        design_effect: How much larger the variance of a mean is than with independent requests, 1 + (m - 1)·ICC for
            m requests a unit whose correlation is ICC.

    Raises:
        ValueError: An argument is out of range.
    """
    return _plan(sd**2, sd**2, effect, shares, control, alpha, power, requests_per_hour, design_effect)


def plan_rate(
    *,
    base: float,
    effect: float,
    shares: Sequence[float],
    control: int = 0,
    alpha: float = 0.05,
    power: float = 0.8,
    requests_per_hour: float | None = None,
    design_effect: float = 1.0,
) -> Plan:
    """For an error rate or another share of requests.

    Args:
        base: The control's rate.
        effect: Treatment - control, not 0.
        shares: See `plan_mean`.
        control: See `plan_mean`.
        alpha: See `plan_mean`.
        power: See `plan_mean`.
        requests_per_hour: See `plan_mean`.
        design_effect: See `plan_mean`.

    Raises:
        ValueError: An argument is out of range.
    """
    other = base + effect
    if not (0.0 <= base <= 1.0 and 0.0 <= other <= 1.0):
        raise ValueError(f"rates are from 0 to 1, not {base:g} and {other:g}")
    variances = (other * (1.0 - other), base * (1.0 - base))
    return _plan(*variances, effect, shares, control, alpha, power, requests_per_hour, design_effect)


def _plan(
    treatment_variance: float,
    control_variance: float,
    effect: float,
    shares: Sequence[float],
    control: int,
    alpha: float,
    power: float,
    requests_per_hour: float | None,
    design_effect: float,
) -> Plan:
    smallest = min(share for place, share in enumerate(shares) if place != control)
    if (
        effect == 0.0
        or not 0.0 < alpha < 1.0
        or not alpha < power < 1.0
        or min(smallest, shares[control]) <= 0.0
    ):
        raise ValueError("effect must not be 0, alpha and power lie between 0 and 1, shares above 0")
    if design_effect < 1.0 or (requests_per_hour is not None and requests_per_hour <= 0.0):
        raise ValueError("the design effect is at least 1, the traffic above 0")
    per_request = design_effect * (treatment_variance / smallest + control_variance / shares[control])
    ndtri = _special().ndtri
    z, more = float(ndtri(1.0 - alpha / 2.0)), float(ndtri(power))
    scale = per_request / effect**2
    always = (math.sqrt(1.0 + planned_length(alpha)) + more) ** 2 * scale

    def method(requests: float) -> Method:
        whole = max(math.ceil(requests), 1)
        return Method(
            requests=whole,
            per_variant=tuple(math.ceil(whole * share) for share in shares),
            duration_s=whole / requests_per_hour * 3600.0 if requests_per_hour else None,
        )

    return Plan(
        fixed=method((z + more) ** 2 * scale),
        always_valid=method(always),
        typical=method(_half_found(effect, per_request, always, alpha)),
    )


def _half_found(effect: float, per_request: float, planned: float, alpha: float) -> float:
    """The number of requests at which the interval's half width falls to the effect."""
    low, high = 1e-6 * planned, planned
    for _ in range(60):
        middle = math.sqrt(low * high)
        half = float(
            half_width(math.sqrt(per_request / middle), middle / per_request, planned / per_request, alpha)
        )
        low, high = (middle, high) if half > abs(effect) else (low, middle)
    return high


def _special() -> Any:
    from scipy import special  # noqa: PLC0415

    return special
