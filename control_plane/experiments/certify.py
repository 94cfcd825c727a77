"""Writes the certificate of one experiment: `python -m control_plane.experiments.certify`.

One `CertificateRequest` as JSON on stdin, one `Certificate` (certificate.py) as JSON on stdout. A process of its own,
so that the simulations can be niced and take no time from a worker's. Exit code 2: the request can't be read.
"""

import sys
from collections.abc import Sequence
from typing import BinaryIO

import msgspec
import numpy as np

from control_plane.experiments.certificate import Certificate, certify
from control_plane.experiments.design import Design, MetricKind
from control_plane.experiments.moments import Floats
from control_plane.experiments.populations import Declared, Law, Logged


class LoggedRequests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Outcomes that were logged, one row a request; newest last."""

    values: dict[str, list[float | None]]
    """By metric; null where it wasn't observed; latency in ms."""
    units: list[str] | None = None
    """Whose request it was; null: each is a unit of its own."""


class CertificateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An experiment to be simulated."""

    design: Design
    shares: list[list[float]]
    """Of each share epoch: one row, or a canary's steps."""
    seed: int
    seconds: float
    """Bound of the time it takes."""
    declared: dict[str, Declared] = {}
    """Law of a metric that wasn't logged; without one, that of its kind."""
    units: int | None = None
    """How many there are; null: each request is one. Of no meaning with `logged`."""
    unit_effect: float = 0.5
    """Sd of a unit's own level in a declared law, in that of one request."""
    logged: LoggedRequests | None = None
    effect: float | None = None
    """To be found in the first metric; of latency as a ratio less 1. null: what a test finds in 80 %."""


MOST_ROWS = 50_000
"""Logged requests that are drawn from: the newest."""


def certificate_of(request: CertificateRequest) -> Certificate:
    """The certificate.

    Raises:
        ValueError: shares or rows don't fit together.
    """
    variants = len(request.design.variants)
    if not request.shares or any(len(row) != variants for row in request.shares):
        raise ValueError(f"expected rows of {variants} shares")
    law = Law(
        declared=request.declared,
        units=request.units,
        unit_effect=request.unit_effect,
        logged=None if request.logged is None else _logged(request.design, request.logged),
    )
    return certify(
        request.design,
        request.shares,
        law,
        seed=request.seed,
        seconds=request.seconds,
        effect=request.effect,
    )


def main(source: BinaryIO, sink: BinaryIO) -> int:
    """Reads a request and writes its certificate; 2 where that can't be."""
    try:
        request = msgspec.json.decode(source.read(), type=CertificateRequest)
        certificate = certificate_of(request)
    except (msgspec.DecodeError, ValueError) as error:
        print(f"not a request for a certificate: {error}", file=sys.stderr)  # noqa: T201
        return 2
    sink.write(msgspec.json.encode(certificate) + b"\n")
    return 0


def _logged(design: Design, given: LoggedRequests) -> Logged:
    lengths = {len(column) for column in given.values.values()}
    if given.units is not None:
        lengths.add(len(given.units))
    if len(lengths) > 1:
        raise ValueError("columns of logged requests are of different lengths")
    kinds = {metric.name: metric.kind for metric in design.metrics}
    return Logged(
        values={
            name: _column(column[-MOST_ROWS:], kinds[name])
            for name, column in given.values.items()
            if name in kinds
        },
        units=None if given.units is None else np.unique(given.units[-MOST_ROWS:], return_inverse=True)[1],
    )


def _column(values: Sequence[float | None], kind: MetricKind) -> Floats:
    """float64 [rows], NaN where nothing was observed; a latency of nothing isn't one."""
    column = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.where(column > 0.0, column, np.nan) if kind is MetricKind.LATENCY else column


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer, sys.stdout.buffer))
