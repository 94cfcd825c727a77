"""Looks at ensembles and changes them: policy, reset, export, import, evaluation. The hot path is elsewhere."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from control_plane.ensembles.credit import Floats
from control_plane.ensembles.exported import ExportedState, checked_sums
from control_plane.ensembles.learning import (
    CARD_POLICY,
    Learned,
    decay_of,
    learn,
    settings_of,
    statistics_of,
    sums_by_period,
)
from control_plane.ensembles.policies import PolicySettings, WeightsPolicy, check
from control_plane.ensembles.records import ensemble_of
from control_plane.ensembles.weights import HistoryPoint
from control_plane.errors import EnsembleChanged, FieldError, InvalidInput, UnknownModel
from control_plane.inference.decisions import agent_names
from control_plane.inference.open_inference_names import find_fresh_model
from control_plane.inference.requests import RL_ENSEMBLE
from control_plane.models.card import ModelCard
from control_plane.models.registry import ModelRegistry
from control_plane.store.ensembles import EnsembleState, EnsembleStore

if TYPE_CHECKING:
    from control_plane.ensembles.off_policy import Evaluation

_ATTEMPTS = 50
_KEPT_EVALUATION_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleView:
    """An ensemble with the history of its weights, oldest first."""

    card: ModelCard
    learned: Learned
    history: tuple[HistoryPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleEvaluation:
    """What the log says of the policies, or why it says nothing; times are wall time in seconds.

    Of `entries`, `left_out` had numbers that no decision has.
    """

    card: ModelCard
    entries: int
    left_out: int
    weights: Mapping[str, dict[str, float]]
    evaluation: "Evaluation | None"
    reason: str | None
    computed_at: float


class EnsembleOperations:
    """What operators may do.

    Args:
        store: What was learned.
        registry: Which ensembles there are.
        wall: Wall time in seconds.
    """

    def __init__(
        self, *, store: EnsembleStore, registry: ModelRegistry, wall: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._registry = registry
        self._wall = wall
        self._evaluating = asyncio.Lock()
        self._evaluations: dict[tuple[str, int, tuple[float, ...] | None], EnsembleEvaluation] = {}

    async def look(self, name: str) -> EnsembleView:
        """The ensemble as of now.

        Raises:
            UnknownModel, UnknownVersion: there is none of that name.
            RedisUnavailable: its state can't be read.
        """
        card = await self._card(name)
        state = await self._state(card)
        points = await self._store.history(ensemble_of(card))
        return EnsembleView(
            card=card,
            learned=await asyncio.to_thread(learn, card, state, now_s=self._wall()),
            history=tuple(msgspec.json.decode(point, type=HistoryPoint) for point in points),
        )

    async def change_policy(self, name: str, settings: PolicySettings) -> EnsembleView:
        """Sets the policy for all workers. What was learned is kept: as of now, where the half-life changes.

        Raises:
            UnknownModel, UnknownVersion: there is no such ensemble.
            InvalidInput: the settings don't fit the ensemble.
            EnsembleChanged: it changes too fast.
            RedisUnavailable: nothing is changed.
        """
        card = await self._card(name)
        agents = agent_names(card)
        _checked(settings, agents)
        text = msgspec.json.encode(settings).decode()
        for _ in range(_ATTEMPTS):
            state = await self._state(card)
            before, _ = settings_of(card, state)
            sums: dict[int, list[float]] | None = None
            if before.half_life_hours != settings.half_life_hours:
                now_s = self._wall()
                decay = decay_of(settings)
                carried = statistics_of(state, before, len(agents), now_s=now_s) * decay.factor(now_s)
                sums = {decay.period(now_s): carried.reshape(-1).tolist()} if carried.any() else {}
            if await self._store.change(
                ensemble_of(card), revision=state.revision, policy=text, sums=sums, rewards=state.rewards
            ):
                return await self.look(name)
        raise _changed(card)

    async def reset(self, name: str) -> EnsembleView:
        """Forgets all rewards, with the log and the history; the policy stays, and so does which feedback was counted.

        Raises:
            As `change_policy`.
        """
        card = await self._card(name)
        await self._store.change(ensemble_of(card), revision=None, sums={}, is_forgotten=True)
        return await self.look(name)

    async def export(self, name: str) -> ExportedState:
        """All that was learned.

        Raises:
            As `look`.
        """
        card = await self._card(name)
        state = await self._state(card)
        agents = agent_names(card)
        return ExportedState(
            model=card.triton_model,
            agents=list(agents),
            policy=settings_of(card, state)[0],
            sums={
                str(period): sums.tolist() for period, sums in sums_by_period(state.sums, len(agents)).items()
            },
            rewards=state.rewards,
            exported_at=self._wall(),
        )

    async def import_state(self, name: str, exported: ExportedState) -> EnsembleView:
        """Puts a state in the place of the present one, policy and all.

        Raises:
            InvalidInput: it is another ensemble's, or was tampered with.
            As `change_policy`.
        """
        card = await self._card(name)
        agents = agent_names(card)
        _checked(exported.policy, agents)
        periods = checked_sums(exported, agents, now_s=self._wall())
        await self._store.change(
            ensemble_of(card),
            revision=None,
            policy=msgspec.json.encode(exported.policy).decode(),
            sums={period: sums.reshape(-1).tolist() for period, sums in periods.items()},
            rewards=exported.rewards,
        )
        return await self.look(name)

    async def evaluate(self, name: str, weights: Mapping[str, float] | None = None) -> EnsembleEvaluation:
        """How other weights would have done on the requests that were rewarded. Takes a thread for up to a second; the
        same question within a few seconds gets the same answer.

        Args:
            name: The ensemble.
            weights: To be evaluated too, by agent.

        Raises:
            InvalidInput: the weights don't fit the ensemble.
            As `look`.
        """
        card = await self._card(name)
        agents = agent_names(card)
        given = None if weights is None else _given_weights(weights, agents)
        async with self._evaluating:
            state = await self._state(card)
            # Another generation: it was reset, or its policy changed.
            key = (ensemble_of(card), state.generation, None if given is None else tuple(given.tolist()))
            known = self._evaluations.get(key)
            if known is not None and self._wall() - known.computed_at < _KEPT_EVALUATION_S:
                return known
            texts = await self._store.log(ensemble_of(card))
            learned = await asyncio.to_thread(learn, card, state, now_s=self._wall())
            policies = _policies(agents, learned, given)
            evaluation, left_out = await asyncio.to_thread(_evaluate, texts, len(agents), policies)
            answer = EnsembleEvaluation(
                card=card,
                entries=len(texts),
                left_out=left_out,
                weights={
                    policy: dict(zip(agents, one.tolist(), strict=True)) for policy, one in policies.items()
                },
                evaluation=None if isinstance(evaluation, str) else evaluation,
                reason=evaluation if isinstance(evaluation, str) else None,
                computed_at=self._wall(),
            )
            now_s = answer.computed_at
            self._evaluations = {
                one: kept
                for one, kept in self._evaluations.items()
                if now_s - kept.computed_at < _KEPT_EVALUATION_S
            } | {key: answer}
            return answer

    async def logged_rewards(self, name: str) -> list[float]:
        """The rewards in the log of an ensemble, oldest first.

        Raises:
            As `look`.
        """
        card = await self._card(name)
        texts = await self._store.log(ensemble_of(card))
        return await asyncio.to_thread(_rewards, texts)

    async def _card(self, name: str) -> ModelCard:
        model = await find_fresh_model(self._registry, name)
        if model.model_type != RL_ENSEMBLE:
            raise UnknownModel(
                f"{model.key} is no ensemble of agents.",
                expected=f"a version of {RL_ENSEMBLE}",
                got=name[:200],
                remedy="GET /api/v1/models lists the versions.",
            )
        return model.card

    async def _state(self, card: ModelCard) -> EnsembleState:
        ensemble = ensemble_of(card)
        return (await self._store.states([ensemble]))[ensemble]


def _policies(agents: tuple[str, ...], learned: Learned, given: Floats | None) -> dict[str, Floats]:
    """The target policies: weights float64 [agents] by name."""
    policies = {f"agent:{name}": weights for name, weights in zip(agents, np.eye(len(agents)), strict=True)}
    policies |= {"uniform": np.full(len(agents), 1 / len(agents)), "current": learned.weights}
    return policies if given is None else policies | {"given": given}


def check_policy_at_load(config: Mapping[str, Any] | None) -> None:
    """Refuses a load whose configuration names a policy that no ensemble could have; the agents aren't known yet.

    Raises:
        InvalidInput: a field is unknown, of the wrong type or out of range.
    """
    given = (config or {}).get(CARD_POLICY)
    if given is None:
        return
    try:
        settings = msgspec.convert(given, PolicySettings)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"config.{CARD_POLICY} is no policy: {error}.",
            expected="an object with the fields of PUT /api/v1/ensembles/{model}",
            got=repr(given)[:200],
            errors=[FieldError(path=f"config.{CARD_POLICY}", message=str(error))],
        ) from error
    _checked(settings, tuple(settings.weights or ("any",)))


def _rewards(texts: list[str]) -> list[float]:
    from control_plane.ensembles.evaluation import rewards_of  # noqa: PLC0415  brings scipy

    return rewards_of(texts)


def _evaluate(
    texts: list[str], agents: int, policies: Mapping[str, Floats]
) -> "tuple[Evaluation | str, int]":
    """The evaluation, or why there is none; and how many entries were left out. Runs in a thread."""
    from control_plane.ensembles.evaluation import evaluate_log  # noqa: PLC0415  brings scipy

    return evaluate_log(texts, agents, policies)


def _checked(settings: PolicySettings, agents: tuple[str, ...], *, what: str = "policy") -> None:
    try:
        check(settings, agents)
    except ValueError as error:
        field, _, message = str(error).partition(": ")
        raise InvalidInput(
            f"The given {what} can't be the ensemble's: {error}.",
            remedy="docs/ensembles.md explains the fields.",
            errors=[FieldError(path=field, message=message)],
        ) from error


def _given_weights(weights: Mapping[str, float], agents: tuple[str, ...]) -> Floats:
    """float64 [agents]; agents that aren't named have 0."""
    if not set(weights) - set(agents):
        weights = dict.fromkeys(agents, 0.0) | dict(weights)
    _checked(PolicySettings(policy=WeightsPolicy.FIXED, weights=dict(weights)), agents, what="weights")
    return np.array([weights[name] for name in agents])


def _changed(card: ModelCard) -> EnsembleChanged:
    return EnsembleChanged(
        f"{card.triton_model} learned something again and again while its policy was to be changed.",
        remedy="Try again.",
    )
