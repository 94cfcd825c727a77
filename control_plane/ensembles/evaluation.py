"""From the log's entries to an evaluation of policies, whatever the entries hold."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from control_plane.ensembles.credit import Floats
from control_plane.ensembles.logged import SUM_TOLERANCE, Log
from control_plane.ensembles.off_policy import Evaluation, NotIdentifiable, evaluate
from control_plane.ensembles.records import LogEntry, entry_from

_NOTHING = "No rewarded decision is in the log yet. Sample actions (action_selection) and give feedback."
_ODD = "All rewarded decisions have numbers that no decision has: agents' probabilities must sum to 1."
_EXTREME = "The rewards are too large to be computed with."


def evaluate_log(
    texts: list[str], agents: int, policies: Mapping[str, Floats]
) -> tuple[Evaluation | str, int]:
    """Evaluates policies by what the log holds.

    Args:
        texts: Its entries, oldest first.
        agents: How many there are.
        policies: Name to float64 [agents] weights.

    Returns:
        The evaluation, or why there is none; and how many entries were left out, since no decision is so.
    """
    if not texts:
        return _NOTHING, 0
    log = log_of(texts, agents)
    left_out = len(texts) - len(log.action)
    if left_out == len(texts):
        return _ODD, left_out
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            evaluation = evaluate(log, policies)
    except NotIdentifiable as error:
        return error.reason, left_out
    except (ValueError, ArithmeticError) as error:
        return f"The log can't be evaluated: {error}.", left_out
    return (evaluation if _is_finite(evaluation) else _EXTREME), left_out


def log_of(texts: list[str], agents: int) -> Log:
    """The entries that can be a decision's; agents have as many actions as in most of them."""
    entries = [
        entry
        for entry in map(_entry, texts)
        if entry is not None
        and len(entry.weights) == 4 * agents
        and not len(entry.agent_probs) % (4 * agents)
    ]
    sizes = Counter(len(entry.agent_probs) for entry in entries)
    size = max(sizes, key=lambda one: sizes[one], default=0)
    entries = [entry for entry in entries if len(entry.agent_probs) == size]
    actions = size // (4 * agents)
    log = Log(
        agent_probs=_floats([entry.agent_probs for entry in entries]).reshape(len(entries), agents, actions),
        weights=_floats([entry.weights for entry in entries]).reshape(len(entries), agents),
        action=np.array([entry.action for entry in entries], dtype=np.int64),
        propensity=np.array([entry.propensity for entry in entries], dtype=np.float64),
        reward=np.array([entry.reward for entry in entries], dtype=np.float64),
        sampled=np.array([entry.is_sampled for entry in entries], dtype=np.bool_),
    )
    possible = (
        _are_shares(log.agent_probs).all(axis=1)
        & _are_shares(log.weights)
        & (log.action >= 0)
        & (log.action < actions)
        & np.isfinite(log.reward)
        & (~log.sampled | ((log.propensity > 0) & (log.propensity <= 1 + SUM_TOLERANCE)))
    )
    return log if possible.all() else log.only(possible)


def rewards_of(texts: list[str]) -> list[float]:
    """The rewards of a log's entries; those that can't be read are left out."""
    return [entry.reward for text in texts if (entry := _entry(text)) is not None]


def _entry(text: str) -> LogEntry | None:
    try:
        return entry_from(text)
    except ValueError:
        return None


def _floats(parts: list[bytes]) -> Floats:
    return np.frombuffer(b"".join(parts), dtype="<f4").astype(np.float64)


def _are_shares(values: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which last axes aren't negative and sum to 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        are: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (values >= 0).all(axis=-1) & (
            abs(values.sum(axis=-1) - 1) <= SUM_TOLERANCE
        )
    return are


def _is_finite(evaluation: Evaluation) -> bool:
    numbers = [evaluation.logged.lower, evaluation.logged.upper]
    for value in evaluation.policies.values():
        for one in (value.interval, value.naive_interval, value.ips, value.snips, value.dr):
            numbers += [one.lower, one.upper]
    return bool(np.isfinite(numbers).all())
