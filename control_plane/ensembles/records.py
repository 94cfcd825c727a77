"""What is kept of a decision until its reward comes, and of a reward for the evaluation: their compact forms. Pure."""

from dataclasses import dataclass

import msgspec
import numpy as np

from control_plane.ensembles.credit import Floats, contribution
from control_plane.ensembles.credit import credits as agents_credits
from control_plane.inference.decisions import Decision
from control_plane.models.card import ModelCard

AGENTS_DIGEST = "agents_digest"
"""Key of the card's configuration that tells agents from others, whatever their format and policy."""
_DIGEST_LENGTH = 12


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One request's decisions, as JSON of about 200 bytes for a row of five agents.

    `agent_probs` and `weights` are float32, little-endian, row after row: [rows, agents, actions] and [agents].
    """

    model_type: str
    version: str
    digest: str
    time_s: float
    shape: tuple[int, int, int]
    agent_probs: bytes
    weights: bytes
    actions: tuple[int, ...]
    propensity: tuple[float, ...]
    is_sampled: bool

    @property
    def ensemble(self) -> str:
        """The ensemble's name in Redis."""
        return f"{self.model_type}-{self.version}@{self.digest}"

    @property
    def rows(self) -> int:
        """How many decisions there are."""
        return self.shape[0]


class LogEntry(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One rewarded decision, for the evaluation. `action` is the one really taken, `chosen` the answer's."""

    time_s: float
    agent_probs: bytes
    weights: bytes
    chosen: int
    action: int
    propensity: float
    reward: float
    is_sampled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedRow:
    """One row of a record: float64 [agents, actions] and [agents]."""

    agent_probs: Floats
    weights: Floats
    chosen: int
    propensity: float


def ensemble_of(card: ModelCard) -> str:
    """The ensemble's name in Redis: its version, and which agents it has."""
    return f"{card.model_type}-{card.version}@{_digest_of(card)}"


def _digest_of(card: ModelCard) -> str:
    """Of the agents, where the exporter gave one; else of the content, which another format changes, too."""
    agents = card.config.get(AGENTS_DIGEST)
    return (agents if isinstance(agents, str) and agents else card.content_digest)[:_DIGEST_LENGTH]


def record_of(card: ModelCard, decision: Decision, *, time_s: float) -> DecisionRecord:
    """The record of a decision.

    Args:
        card: The version that decided.
        decision: What it decided.
        time_s: Wall time of the request in seconds.
    """
    probs = np.ascontiguousarray(decision.agent_probs, dtype="<f4")
    return DecisionRecord(
        model_type=card.model_type,
        version=card.version,
        digest=_digest_of(card),
        time_s=time_s,
        shape=(probs.shape[0], probs.shape[1], probs.shape[2]),
        agent_probs=probs.tobytes(),
        weights=np.asarray(decision.weights, dtype="<f4").tobytes(),
        actions=tuple(decision.actions.tolist()),
        propensity=tuple(decision.propensity.tolist()),
        is_sampled=decision.is_sampled,
    )


def row_of(record: DecisionRecord, row: int) -> DecidedRow:
    """One row of a record."""
    probs = np.frombuffer(record.agent_probs, dtype="<f4").reshape(record.shape)[row]
    return DecidedRow(
        agent_probs=probs.astype(np.float64),
        weights=np.frombuffer(record.weights, dtype="<f4").astype(np.float64),
        chosen=record.actions[row],
        propensity=record.propensity[row],
    )


def sums_of(row: DecidedRow, *, action: int, reward: float, factor: float) -> list[float]:
    """What a reward adds to the ensemble's sums: [agents × 4], flat.

    Raises:
        ValueError: a term isn't finite.
    """
    shares = agents_credits(row.agent_probs, row.weights, action)
    added: list[float] = contribution(shares, reward, factor).reshape(-1).tolist()
    return added


def log_entry_of(record: DecisionRecord, row: DecidedRow, *, action: int, reward: float) -> LogEntry:
    """The log's entry of a rewarded row."""
    return LogEntry(
        time_s=record.time_s,
        agent_probs=row.agent_probs.astype("<f4").tobytes(),
        weights=record.weights,
        chosen=row.chosen,
        action=action,
        propensity=row.propensity,
        reward=reward,
        is_sampled=record.is_sampled and action == row.chosen,
    )


_encoder = msgspec.json.Encoder()
_records = msgspec.json.Decoder(DecisionRecord)
_entries = msgspec.json.Decoder(LogEntry)


def to_text(value: DecisionRecord | LogEntry) -> str:
    """JSON."""
    return _encoder.encode(value).decode()


def record_from(text: str) -> DecisionRecord:
    """Reads a record.

    Raises:
        ValueError: it is none.
    """
    try:
        record = _records.decode(text)
    except msgspec.MsgspecError as error:
        raise ValueError(f"no decision: {error}") from error
    rows, agents, actions = record.shape
    counts = (len(record.actions), len(record.propensity))
    sizes = (len(record.agent_probs), len(record.weights))
    if counts != (rows, rows) or sizes != (4 * rows * agents * actions, 4 * agents):
        raise ValueError(f"no decision of {rows} rows, {agents} agents and {actions} actions")
    return record


def entry_from(text: str) -> LogEntry:
    """Reads an entry of the log.

    Raises:
        ValueError: it is none.
    """
    try:
        return _entries.decode(text)
    except msgspec.MsgspecError as error:
        raise ValueError(f"no rewarded decision: {error}") from error
