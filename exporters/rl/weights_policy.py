"""Whether a request's `weights_policy` can be that of its agents. The control plane acts by it; docs/ensembles.md.

Checked before anything is published: the control plane would have to fall back on its default.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from exporters.errors import InvalidConfig, shown

_SUM_TOLERANCE = 1e-6


class _WeightsPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The control plane's `PolicySettings`; a test holds the two to each other."""

    policy: Literal["thompson", "fixed", "softmax"] = "thompson"
    reward: Literal["normal", "binary"] = "normal"
    half_life_hours: Annotated[float, Meta(ge=1e-3, le=1e6)] | None = None
    temperature: Annotated[float, Meta(ge=1e-6, le=1e6)] = 0.05
    weights: dict[str, Annotated[float, Meta(ge=0, le=1)]] | None = None
    floor: Annotated[float, Meta(ge=0, le=1)] = 0.0


def check_weights_policy(given: Mapping[str, Any], agents: Sequence[str]) -> None:
    """Checks a policy.

    Args:
        given: As the request has it.
        agents: Their names.

    Raises:
        InvalidConfig: a field is unknown, of the wrong type or out of range, or doesn't fit the agents.
    """
    try:
        policy = msgspec.convert(dict(given), _WeightsPolicy)
    except msgspec.ValidationError as error:
        raise InvalidConfig(
            "weights_policy is no policy.",
            expected=", ".join(_WeightsPolicy.__struct_fields__),
            got=str(error)[:300],
            remedy="Correct config.weights_policy; docs/ensembles.md explains the fields.",
        ) from error
    most = 1 / len(agents)
    if not policy.floor * len(agents) <= 1:
        raise _refusal("floor", f"from 0 to {most:g} (1 / {len(agents)} agents)", f"{policy.floor:g}")
    weights = policy.weights
    if weights is None:
        return
    if policy.policy != "fixed":
        raise _refusal("weights", f"none with policy {policy.policy}, they belong to fixed", "weights")
    if policy.floor:
        raise _refusal("floor", "0 beside given weights", f"{policy.floor:g}")
    if set(weights) != set(agents):
        raise _refusal(
            "weights", f"one for each of {', '.join(agents)}", ", ".join(map(shown, weights)) or "none"
        )
    if not abs((total := sum(weights.values())) - 1) <= _SUM_TOLERANCE:
        raise _refusal("weights", "a sum of 1", f"{total:g}")


def _refusal(field: str, expected: str, got: str) -> InvalidConfig:
    return InvalidConfig(
        f"{field} of weights_policy doesn't fit the ensemble.",
        expected=expected[:300],
        got=got[:300],
        remedy="Correct config.weights_policy; docs/ensembles.md explains the fields.",
    )
