"""A predictor over a real registry, with models in memory instead of Triton, and a cache that loads in no time at all
or as long as it is told.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from control_plane.errors import DeadlineExceeded, ModelNotReady
from control_plane.inference.predictor import Predictor
from control_plane.models.aliases import Aliases
from control_plane.models.card import ModelCard
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.settings import RedisSettings, Settings
from control_plane.store.redis import open_store
from tests.unit.inference.cards import CLASSES, MEMBERS, SAMPLES, TARGETS, card, hybrid_card, rl_card
from tests.unit.inference.virtual_time import now


@dataclass
class MemoryCache:
    """Which versions are loaded. `loads` counts; a load takes `load_s`."""

    load_s: float = 0.0
    loaded: set[str] = field(default_factory=set)
    in_flight: dict[str, int] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def try_use(self, model: ModelVersion) -> bool:
        if model.key not in self.loaded:
            return False
        self.in_flight[model.key] = self.in_flight.get(model.key, 0) + 1
        return True

    def is_loaded(self, model: ModelVersion) -> bool:
        return model.key in self.loaded

    async def ensure_loaded(self, model: ModelVersion, *, deadline: float) -> None:
        if now() + self.load_s > deadline:
            await asyncio.sleep(deadline - now())
            raise DeadlineExceeded("the load takes longer")
        self.loads.append(model.key)
        await asyncio.sleep(self.load_s)
        self.loaded.add(model.key)

    def done(self, model: ModelVersion) -> None:
        self.in_flight[model.key] -= 1

    def report_lost(self, model: ModelVersion) -> None:
        self.lost.append(model.key)
        self.loaded.discard(model.key)


@dataclass
class MemoryTriton:
    """Models as functions of their input: the same outputs for a row, whatever is merged with it."""

    service_s: float = 0.01
    errors: list[Exception] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)

    async def infer(
        self, model: str, inputs: Mapping[str, Any], outputs: Sequence[str], *, timeout_s: float
    ) -> dict[str, Any]:
        assert timeout_s > 0
        array = next(iter(inputs.values()))
        self.calls.append((model, len(array)))
        await asyncio.sleep(self.service_s)
        if self.errors:
            raise self.errors.pop(0)
        level = array.reshape(len(array), -1).mean(axis=1)
        if model.startswith("cnn_lstm_hybrid"):
            return {name: self._hybrid(name.rpartition("__")[0], level, array) for name in outputs}
        if model.startswith("rl_ensemble"):
            return {name: self._rl(name, level) for name in outputs}
        return dict.fromkeys(outputs, array + 1)

    @staticmethod
    def _hybrid(name: str, level: Any, array: Any) -> Any:
        shape = {
            "classification_probs": (CLASSES,),
            "regression_pred": (TARGETS,),
            "mc_regression": (SAMPLES, TARGETS),
            "mc_probs": (SAMPLES, CLASSES),
            "member_probs": (MEMBERS, CLASSES),
            "member_regression": (MEMBERS, TARGETS),
            "ensemble_weights": (MEMBERS,),
            "attention_weights": (array.shape[-1],),
        }[name]
        pattern = np.random.default_rng(len(name)).random(shape) + 0.1
        rows = np.stack([pattern * (1 + abs(value)) for value in level])
        if "probs" in name or "weights" in name:
            rows /= rows.sum(axis=-1, keepdims=True)
        return rows.astype(np.float32)

    @staticmethod
    def _rl(name: str, level: Any) -> Any:
        shape = {"action_probs": (3,), "value": (1,), "agent_action_probs": (2, 3), "agent_values": (2,)}[
            name
        ]
        rows = np.stack([np.random.default_rng(int(value * 100)).random(shape) for value in level])
        if "probs" in name:
            rows /= rows.sum(axis=-1, keepdims=True)
        return rows.astype(np.float32)


@dataclass(frozen=True)
class DataPlane:
    predictor: Predictor
    registry: ModelRegistry
    cache: MemoryCache
    triton: MemoryTriton
    settings: Settings
    repository: Path


DEFAULT_CARDS = (hybrid_card("v1.0"), hybrid_card("v1.1"), rl_card(), card("mine", "v2"))


def register(repository: Path, of: ModelCard) -> None:
    """Publishes a version's card."""
    (repository / of.triton_model / "1").mkdir(parents=True, exist_ok=True)
    (repository / of.triton_model / "1" / "model.onnx").write_bytes(b"x" * of.size_bytes)
    (repository / of.triton_model / "config.pbtxt").write_text(f'name: "{of.triton_model}"')
    (repository / of.triton_model / "model.json").write_bytes(msgspec.json.encode(of))


@asynccontextmanager
async def data_plane(
    repository: Path, *, cards: Sequence[ModelCard] = DEFAULT_CARDS, **sections: Any
) -> AsyncIterator[DataPlane]:
    """The parts, with the given versions registered. Inside a running loop; its time is the clock."""
    for one in cards:
        register(repository, one)
    settings = Settings(**sections)
    async with open_store(RedisSettings()) as store:
        registry = ModelRegistry(repository, Aliases(store))
        await registry.refresh()
        cache, triton = MemoryCache(), MemoryTriton()
        predictor = Predictor(
            registry=registry,
            cache=cache,  # type: ignore[arg-type]
            infer=triton.infer,
            settings=settings,
            clock=asyncio.get_running_loop().time,
        )
        yield DataPlane(predictor, registry, cache, triton, settings, repository)


def not_ready() -> ModelNotReady:
    return ModelNotReady("Triton doesn't hold it")
