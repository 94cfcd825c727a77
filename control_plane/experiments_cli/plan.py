"""`plan`: how many requests an experiment takes, and how long, by the fixed and by the always-valid method. Offline."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from control_plane.experiments.certificate import Certificate, certify
from control_plane.experiments.design import Design, Direction, Metric, MetricKind
from control_plane.experiments.planning import Method, Plan, plan_mean, plan_rate
from control_plane.experiments.populations import DEFAULTS, Declared, Law

_METHODS = {
    "fixed": "looked at once, at the end",
    "always_valid": "looked at any time",
    "typical": "… and half of all found by",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What is to be found.

    Attributes:
        kind: latency, mean, rate or error.
        effect: Of a latency relative (0.1: 10 % longer), otherwise the difference.
        base: The control's rate; for rate and error.
        sd: Standard deviation of one request; of a latency that of its natural logarithm.
        shares: The control's first.
        alpha: Two-sided.
        power: Wanted chance to find the effect.
        requests_per_hour: Of the whole experiment; None: not known.
        requests_per_unit: How many requests a unit (a routing key) sends, on average.
        correlation: Between the requests of a unit, 0 to 1.
    """

    kind: str
    effect: float
    base: float | None
    sd: float | None
    shares: tuple[float, ...]
    alpha: float
    power: float
    requests_per_hour: float | None
    requests_per_unit: float
    correlation: float


def computed(options: PlanOptions) -> Plan:
    """The plan.

    Raises:
        ValueError: a number is missing or out of range.
    """
    if options.requests_per_unit < 1 or not 0 <= options.correlation <= 1:
        raise ValueError("a unit has at least 1 request, and the correlation is from 0 to 1")
    total = math.fsum(options.shares)
    if len(options.shares) < 2 or any(share <= 0 for share in options.shares):
        raise ValueError("at least two shares, each above 0")
    shared: dict[str, Any] = {
        "shares": [share / total for share in options.shares],
        "alpha": options.alpha,
        "power": options.power,
        "requests_per_hour": options.requests_per_hour,
        "design_effect": 1 + (options.requests_per_unit - 1) * options.correlation,
    }
    if options.kind in ("rate", "error"):
        if options.base is None:
            raise ValueError("a rate needs --base, the control's rate")
        return plan_rate(base=options.base, effect=options.effect, **shared)
    if options.sd is None or options.sd <= 0:
        raise ValueError("a mean needs --sd, above 0; of a latency that of its natural logarithm")
    if options.kind == "latency":
        if options.effect <= -1:
            raise ValueError("a latency can't fall by all of it")
        return plan_mean(sd=options.sd, effect=math.log1p(options.effect), **shared)
    return plan_mean(sd=options.sd, effect=options.effect, **shared)


def certified(options: PlanOptions, plan: Plan, *, seconds: float) -> Certificate:
    """What simulations say of an experiment that is planned so: metrics' laws are declared.

    Raises:
        ValueError: the numbers make no experiment.
    """
    kind = MetricKind(options.kind)
    metric = Metric(name=options.kind, kind=kind, direction=Direction.DOWN)
    default = DEFAULTS[kind]
    declared = Declared(
        level=default.level if options.base is None else options.base,
        sd=default.sd if options.sd is None else options.sd,
    )
    total = math.fsum(options.shares)
    requests = plan.always_valid.requests
    units = max(1, round(requests / options.requests_per_unit)) if options.requests_per_unit > 1 else None
    return certify(
        Design(
            variants=tuple(f"variant {number}" for number in range(len(options.shares))),
            metrics=(metric,),
            alpha=options.alpha,
            planned_requests=requests,
        ),
        [[share / total for share in options.shares]],
        Law(
            declared={metric.name: declared},
            units=units,
            unit_effect=math.sqrt(options.correlation / (1 - options.correlation))
            if options.correlation < 1
            else 10.0,
        ),
        seed=0,
        seconds=seconds,
        effect=options.effect,
    )


def document_of(options: PlanOptions, plan: Plan, certificate: Certificate | None = None) -> dict[str, Any]:
    """For `--json`."""
    document = {"settings": asdict(options), **asdict(plan)}
    return document if certificate is None else document | {"certificate": asdict(certificate)}


def print_certificate(certificate: Certificate, console: Console) -> None:
    """What the simulations say, in two lines and the warnings."""
    if certificate.false_alarm_rate is not None and certificate.false_alarm_upper is not None:
        console.print(
            f"Simulated {certificate.runs:,} times without a difference: one was called in "
            f"{certificate.false_alarm_rate:.1%} (at most {certificate.false_alarm_upper:.1%})."
        )
    for power in certificate.power:
        console.print(
            f"With the effect, {certificate.power_runs:,} times: found by the planned end in {power.planned:.0%}, by "
            f"twice that in {power.twice:.0%}; by a test at the planned end in {power.fixed:.0%}."
        )
    for warning in certificate.warnings:
        console.print(f"Note: {warning}", markup=False)


def print_plan(options: PlanOptions, plan: Plan, console: Console) -> None:
    """The table, and what to do with it."""
    title = f"To find an effect of {options.effect:g} with power {options.power:g} at alpha {options.alpha:g}"
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for name in ("requests", "of each variant", "time"):
        table.add_column(name, justify="right")
    for name, words in _METHODS.items():
        method: Method = getattr(plan, name)
        each = " : ".join(f"{count:,}" for count in method.per_variant)
        table.add_row(words, f"{method.requests:,}", each, duration(method.duration_s))
    console.print(table)
    lasts_s = plan.always_valid.duration_s
    lasting = "" if lasts_s is None else f' and "duration_hours": {math.ceil(lasts_s / 360) / 10:g}'
    console.print(
        f'Create it with "planned_requests": {plan.always_valid.requests}{lasting}: the intervals are narrowest there.',
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def duration(seconds: float | None) -> str:
    """E.g. `3.2 days`."""
    if seconds is None:
        return "–"
    for unit_s, name in ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:,.1f} {name}"
    return f"{seconds:,.0f} seconds"
