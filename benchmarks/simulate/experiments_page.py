"""The tables of docs/experiments_validation.md."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.simulate import page
from benchmarks.simulate.experiments_canaries import WITHIN
from benchmarks.simulate.experiments_checks import SPLITS
from benchmarks.simulate.experiments_goals import Found, Goal, Key, Size
from benchmarks.simulate.experiments_sequences import NEVER, PLANNED, Outcome, share_of, upper_bound
from control_plane.experiments.moments import Floats


def sections(found: Found, goals: Sequence[Goal], size: Size) -> dict[str, str]:
    """What stands between the page's markers, by name."""
    return {
        "goals": _goals(goals),
        "same": _same(found.same, size),
        "different": _different(found.different, size),
        "drifting": _drifting(found.drifting, size),
        "split": _split(found, size),
        "canaries": _canaries(found, size),
        "sketches": _sketches(found.sketches, size),
        "machine": page.machine() + "\n",
    }


def _goals(goals: Sequence[Goal]) -> str:
    rows = [(goal.text, goal.measured, goal.asked + ("" if goal.holds else ", **missed**")) for goal in goals]
    return page.table(("figure", "measured", "asked"), rows)


def _names(key: Key) -> tuple[str, str]:
    law, routing_keys = key
    return law.text, "accounts" if routing_keys else "requests"


def _same(same: Mapping[Key, Outcome], size: Size) -> str:
    rows = [
        (
            *_names(key),
            f"{share_of(one.found):.1%} ({upper_bound(share_of(one.found), size.experiments):.1%})",
            f"{share_of(one.naive_t):.0%}",
            f"{share_of(one.bucket_t):.0%}",
            f"{share_of(one.naive_missed):.1%}",
        )
        for key, one in same.items()
    ]
    header = (
        *("law", "units", "always-valid verdict (upper 95 % bound)", "naive t-test"),
        *("t-test with the right standard error", "always-valid with the naive one"),
    )
    return f"{size.experiments:,} experiments each.\n\n{page.table(header, rows)}"


def _different(different: Mapping[Key, Outcome], size: Size) -> str:
    rows = [
        (
            *_names(key),
            f"{one.fixed.mean():.0%}",
            f"{share_of(one.found, by=PLANNED):.0%}",
            f"{share_of(one.found):.0%}",
            _median(one.found),
            f"{1 - share_of(one.missed):.1%}",
            f"{1 - share_of(one.naive_missed):.1%}",
        )
        for key, one in different.items()
    ]
    header = (
        *("law", "units", "fixed-horizon test at n", "always-valid by n", "by 2n", "median"),
        *("intervals hold the truth", "with the naive standard error"),
    )
    return f"{size.experiments:,} experiments each; n = {PLANNED:,}.\n\n{page.table(header, rows)}"


def _drifting(drifting: Mapping[Key, Outcome], size: Size) -> str:
    rows = [
        (
            *_names(key),
            f"{share_of(one.found):.1%} ({upper_bound(share_of(one.found), size.experiments):.1%})",
            f"{share_of(one.pooled_found):.0%}",
        )
        for key, one in drifting.items()
    ]
    header = ("law", "units", "always-valid verdict (upper 95 % bound)", "from sums over all steps")
    return f"{size.experiments:,} experiments each.\n\n{page.table(header, rows)}"


def _split(found: Found, size: Size) -> str:
    checks = [
        (
            f"{text}, as declared",
            f"{share_of(one.alarmed):.2%} ({upper_bound(share_of(one.alarmed), size.ratio_runs):.2%})",
            f"{share_of(one.chi_square):.1%}",
            "–",
        )
        for text, one in found.splits.items()
    ]
    broken = found.broken
    checks.append(
        (
            "52/48 behind 50/50",
            f"{share_of(broken.alarmed):.1%}",
            f"{share_of(broken.chi_square):.1%}",
            _median(broken.alarmed),
        )
    )
    header = ("split", "ratio check (upper 95 % bound)", "chi-square below 0.001", "median units")
    one = found.assigned
    assigned = [
        (
            text,
            ", ".join(f"{count:,}" for count in one.counts[text]),
            f"{one.p[text]:.3f}",
            f"{one.other_p[text]:.3f}",
        )
        for text in SPLITS
    ]
    columns = (
        "split",
        "units of each variant",
        "p: shares as declared",
        "p: independent of another experiment",
    )
    return (
        f"{size.ratio_runs:,} runs each, looked at after every 100 of 20,000 units: how many ever alarmed.\n\n"
        f"{page.table(header, checks)}\n"
        f"{size.units:,} units, divided by the code that serves in two experiments of different ids. The units' places "
        f"in both correlate with {one.correlation:+.4f}; p of a bucket's independence of the variant: "
        f"{one.bucket_p:.3f}.\n\n{page.table(columns, assigned)}"
    )


def _canaries(found: Found, size: Size) -> str:
    harmless = [
        (
            text,
            f"{share_of(at):.1%} ({upper_bound(share_of(at), size.harmless):.1%})",
        )
        for text, at in found.harmless.items()
    ]
    texts = list(next(iter(found.harmful.values())))
    harmful = [
        (
            text,
            *(f"{share_of(at[text], by=WITHIN):.0%} ({_median(at[text])})" for at in found.harmful.values()),
        )
        for text in texts
    ]
    columns = [
        f"limit of the latency {limit:g}, steps of {requests} requests" for limit, requests in found.harmful
    ]
    return (
        f"{size.harmless:,} harmless canaries each: how many were ever rolled back.\n\n"
        f"{page.table(('treatment', 'rolled back (upper 95 % bound)'), harmless)}\n"
        f"{size.harmful:,} harmful canaries each: how many were rolled back within {WITHIN} of the treatment's "
        f"requests, and after how many in the median.\n\n{page.table(('treatment', *columns), harmful)}"
    )


def _sketches(sketches: Mapping[str, tuple[float, float]], size: Size) -> str:
    rows = [(text, f"{whole:.2%}", f"{merged:.2%}") for text, (whole, merged) in sketches.items()]
    return f"{size.sketched:,} values each.\n\n{page.table(('distribution', 'one sketch', 'merged from 16'), rows)}"


def _median(first: Floats) -> str:
    middle = float(np.quantile(first, 0.5, method="lower"))
    return "not in half" if middle == NEVER else f"{middle:,.0f}"
