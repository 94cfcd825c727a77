"""The learning side of workers on a real Redis, without Triton: decisions are given as an answer would have them."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from control_plane.embedded.redis import RedisServer
from control_plane.ensembles.feedback import RewardDesk
from control_plane.ensembles.operations import EnsembleOperations
from control_plane.ensembles.recorder import DecisionRecorder
from control_plane.ensembles.weights import LearnedWeights
from control_plane.experiments.active import ActiveExperiments
from control_plane.experiments.counters import Counters
from control_plane.experiments.outcomes import OutcomeDesk
from control_plane.experiments.service import ExperimentService
from control_plane.feedback.desk import FeedbackDesk
from control_plane.inference.decisions import Decision
from control_plane.inference.feedback import Feedback, FeedbackResult
from control_plane.inference.identifiers import uuid7
from control_plane.models.aliases import Aliases
from control_plane.models.card import ModelCard
from control_plane.models.registry import ModelRegistry
from control_plane.settings import EnsemblesSettings, ExperimentsSettings, FeedbackSettings, RedisSettings
from control_plane.store.ensembles import EnsembleStore
from control_plane.store.experiments import ExperimentStore
from control_plane.store.redis import RedisStore, open_store
from tests.unit.inference.cards import rl_card
from tests.unit.inference.data_plane import register

AGENTS, ACTIONS = 3, 3
CARD = rl_card(
    config={"agents": [{"name": name} for name in ("ppo", "dqn", "td3")]},
    class_names=("sell", "hold", "buy"),
    content_digest="0123456789abcdef",
)
NAME = CARD.triton_model


@dataclass
class LearningWorker:
    """What one worker has of it."""

    redis: RedisStore
    store: EnsembleStore
    registry: ModelRegistry
    repository: Path
    recorder: DecisionRecorder
    weights: LearnedWeights
    desk: FeedbackDesk
    operations: EnsembleOperations

    def decide(self, request_id: str | None = None, *, card: ModelCard = CARD, **options: Any) -> str:
        """Notes a decision; returns its id."""
        request_id = request_id or uuid7()
        assert self.recorder.note(request_id, card, decision(**options)) == ()
        return request_id

    async def see(self, card: ModelCard | None) -> None:
        """Has the version registered with that card alone; None: with none."""
        shutil.rmtree(self.repository / NAME, ignore_errors=True)
        if card is not None:
            register(self.repository, card)
        await self.registry.refresh()
        await self.weights.refresh()

    async def give(self, request_id: str, reward: float | None = None, **fields: Any) -> FeedbackResult:
        """One feedback."""
        return (await self.desk.take([Feedback(request_id=request_id, reward=reward, **fields)]))[0]


StartWorker = Callable[..., Awaitable[LearningWorker]]


def decision(*, seed: int = 0, rows: int = 1, is_sampled: bool = True) -> Decision:
    """A decision of random agents."""
    random = np.random.default_rng(seed)
    probs = random.dirichlet(np.ones(ACTIONS), size=(rows, AGENTS)).astype(np.float32)
    weights = random.dirichlet(np.ones(AGENTS)).astype(np.float32)
    mixture = np.einsum("a,bak->bk", weights.astype(np.float64), probs.astype(np.float64))
    actions = np.array([random.choice(ACTIONS, p=row / row.sum()) for row in mixture])
    return Decision(
        agent_probs=probs,
        weights=weights,
        actions=actions,
        propensity=mixture[np.arange(rows), actions],
        is_sampled=is_sampled,
    )


@pytest.fixture
async def start_worker(
    redis_server: RedisServer, redis_key_prefix: str, tmp_path: Path
) -> AsyncIterator[StartWorker]:
    """Starts a worker's learning side; `redis_url` names another Redis, the rest are settings of `feedback`."""
    register(tmp_path, CARD)
    async with AsyncExitStack() as stack:

        async def start(
            *,
            redis_url: str | None = None,
            wall: Callable[[], float] | None = None,
            ensembles: EnsemblesSettings | None = None,
            **feedback: Any,
        ) -> LearningWorker:
            redis = await stack.enter_async_context(
                open_store(RedisSettings(url=redis_url or redis_server.url, key_prefix=redis_key_prefix))  # type: ignore[arg-type]
            )
            settings = FeedbackSettings(**feedback)
            registry = ModelRegistry(tmp_path, Aliases(redis))
            await registry.refresh()
            store = EnsembleStore(redis, retention_s=settings.retention_s, log_size=20_000)
            clock = {} if wall is None else {"wall": wall}
            weights = LearnedWeights(store, registry, ensembles or EnsemblesSettings(), **clock)
            recorder = DecisionRecorder(store, settings, **clock)
            experiments = ExperimentStore(redis, retention_s=settings.retention_s)
            active = ActiveExperiments(Counters())
            service = ExperimentService(
                store=experiments,
                active=active,
                cache=None,  # type: ignore[arg-type]  # no experiment runs here
                registry=registry,
                settings=ExperimentsSettings(),
            )
            desk = FeedbackDesk(
                store=store,
                recorder=recorder,
                rewards=RewardDesk(store=store, registry=registry, weights=weights, **clock),
                outcomes=OutcomeDesk(experiments, active, service),
                settings=settings,
                **clock,
            )
            for work in (recorder.run, weights.run, redis.run_listener):
                task = asyncio.create_task(work())
                stack.callback(task.cancel)
            return LearningWorker(
                redis,
                store,
                registry,
                tmp_path,
                recorder,
                weights,
                desk,
                EnsembleOperations(store=store, registry=registry, **clock),
            )

        yield start
