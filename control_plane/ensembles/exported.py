"""What an ensemble learned, on its way from one deployment to another: whether it can be what it says. Pure."""

import msgspec
import numpy as np

from control_plane.ensembles.credit import STATISTICS, Decay, Floats, combine
from control_plane.ensembles.learning import decay_of
from control_plane.ensembles.policies import PolicySettings
from control_plane.errors import FieldError, InvalidInput

_FORMAT = 1
_MOST_PERIODS = 8
"""More than three count for nothing; the rest are a margin for what wasn't swept up yet."""
_CLOCKS_S = 60.0
"""By which clocks may differ."""
_ROUNDING = 1 + 1e-6


class ExportedState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that an ensemble learned, to be put back or into another deployment.

    `sums` are float64 [agents, 4] for each period of the decay: Σc, Σc², Σc·r, Σc·r² (docs/ensembles.md).
    """

    model: str
    agents: list[str]
    policy: PolicySettings
    sums: dict[str, list[list[float]]]
    rewards: int
    exported_at: float
    format: int = _FORMAT


def checked_sums(exported: ExportedState, agents: tuple[str, ...], *, now_s: float) -> dict[int, Floats]:
    """The sums by period, float64 [agents, 4].

    Args:
        exported: With a policy that fits the agents.
        agents: The ensemble's.
        now_s: Wall time in seconds.

    Raises:
        InvalidInput: it is another ensemble's, or no rewards give such numbers.
    """
    if exported.format != _FORMAT:
        raise _refusal("format", f"format {_FORMAT}", str(exported.format))
    if tuple(exported.agents) != agents:
        raise _refusal("agents", ", ".join(agents), ", ".join(exported.agents)[:500])
    if exported.rewards < 0:
        raise _refusal("rewards", "at least 0", str(exported.rewards))
    if exported.exported_at > now_s + _CLOCKS_S:
        raise _refusal("exported_at", "a time that has come", f"{exported.exported_at:g}")
    if len(exported.sums) > _MOST_PERIODS:
        raise _refusal("sums", f"at most {_MOST_PERIODS} periods", str(len(exported.sums)))
    decay = decay_of(exported.policy)
    latest = decay.period(now_s + _CLOCKS_S)
    periods = {
        _period(text, decay, latest): _numbers(text, rows, len(agents))
        for text, rows in exported.sums.items()
    }
    if periods:
        c, c2 = combine(periods, decay, exported.exported_at).T[:2]
        # The effective number of rewards (Kish) is at most their number.
        if not (c**2 <= exported.rewards * c2 * _ROUNDING).all():
            raise _refusal("rewards", "at least as many as the sums are of", str(exported.rewards))
    return periods


def _period(text: str, decay: Decay, latest: int) -> int:
    path = f"sums.{text[:40]}"
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(text) > 18 or str(int(text)) != text:
        raise _refusal(path, "the number of a period as key", text[:40])
    if decay.half_life_s is None and text != "0":
        raise _refusal(path, "0, the only period without a half-life", text)
    if int(text) > latest:
        raise _refusal(path, f"a period that has begun, at most {latest}", text)
    return int(text)


def _numbers(text: str, rows: list[list[float]], agents: int) -> Floats:
    path = f"sums.{text[:40]}"
    if [len(row) for row in rows] != [len(STATISTICS)] * agents:
        raise _refusal(path, f"{agents} rows of {len(STATISTICS)} numbers", "another shape")
    sums = np.array(rows, dtype=np.float64)
    c, c2, cr, crr = sums.T
    with np.errstate(over="ignore", invalid="ignore"):
        # Cauchy and Schwarz: sums of real rewards can't be otherwise, but for rounding.
        possible = (c >= 0) & (c2 >= 0) & (crr >= 0) & (cr**2 <= c * crr * _ROUNDING)
    if not (np.isfinite(sums).all() and possible.all()):
        raise _refusal(path, "sums of finite rewards", "numbers that no rewards give")
    return sums


def _refusal(path: str, expected: str, got: str) -> InvalidInput:
    return InvalidInput(
        "The state doesn't fit the ensemble.",
        expected=expected,
        got=got,
        remedy="Import what GET …/export of an ensemble with the same agents gave.",
        errors=[FieldError(path=path, message=f"expected {expected}")],
    )
