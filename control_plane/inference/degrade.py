"""What answers a request that overload would have refused: a cheaper version, then an older answer.

docs/overload.md describes the ladder. One step only: a fallback's own fallback isn't asked.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import structlog

from control_plane.errors import DeadlineExceeded, InvalidInput, Overloaded, QueueFull, ServingError
from control_plane.inference.admission import WITHOUT_DEGRADING
from control_plane.inference.plans import Plan
from control_plane.inference.served import ServedModel, ServedModels
from control_plane.inference.tensors import Array
from control_plane.models.cache import ModelCache
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.telemetry import metrics

log = structlog.get_logger()

OVERLOAD = (Overloaded, QueueFull)
"""The refusals that the ladder is for."""
DEGRADE = "degrade"


class DegradedBy(StrEnum):
    """What answered instead."""

    FALLBACK = "fallback"
    STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A planned request to one version."""

    model: ModelVersion
    served: ServedModel
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a version gave for an `Ask`, and how."""

    ask: Ask
    tensors: Mapping[str, Array]
    is_cached: bool = False
    degraded: DegradedBy | None = None
    warnings: tuple[str, ...] = ()


class Ladder:
    """The steps below a refusal.

    Args:
        registry: Which versions exist.
        cache: Which are loaded: a fallback that isn't would be loaded too late.
        served: Their kinds and dispatchers.
    """

    def __init__(self, *, registry: ModelRegistry, cache: ModelCache, served: ServedModels) -> None:
        self._registry = registry
        self._cache = cache
        self._served = served

    async def step_down(
        self,
        refusal: ServingError,
        ask: Ask,
        *,
        plan_for: Callable[[ModelVersion, ServedModel], Plan],
        run: Callable[[Ask], Awaitable[Outputs]],
    ) -> Outputs:
        """Answers for a version that refused.

        Args:
            refusal: What is raised where no step holds.
            ask: What was refused.
            plan_for: Plans the request for another version; raises InvalidInput where it doesn't fit that one.
            run: Runs a plan, in the time that is left.

        Raises:
            DeadlineExceeded: the fallback took the rest of the time.
        """
        outputs = await self._by_fallback(ask, plan_for, run) or await self._by_stale(ask)
        if outputs is None or outputs.degraded is None:
            if isinstance(refusal, Overloaded):
                refusal.remedy = WITHOUT_DEGRADING
            raise refusal
        metrics.PREDICTIONS_DEGRADED.labels(
            ask.model.model_type, ask.model.version, outputs.degraded.value
        ).inc()
        return outputs

    async def _by_fallback(
        self,
        ask: Ask,
        plan_for: Callable[[ModelVersion, ServedModel], Plan],
        run: Callable[[Ask], Awaitable[Outputs]],
    ) -> Outputs | None:
        name = ask.model.card.serving.fallback
        fallback = None if name is None else self._registry.find(ask.model.model_type, name)
        if fallback is None or fallback is ask.model or not self._cache.is_loaded(fallback):
            return None
        served = self._served.of(fallback)
        try:
            outputs = await run(Ask(model=fallback, served=served, plan=plan_for(fallback, served)))
        except InvalidInput as error:
            log.debug("fallback_does_not_fit", model=fallback.key, reason=error.detail)
            return None
        except DeadlineExceeded:
            raise
        except ServingError:
            return None
        return Outputs(
            ask=outputs.ask,
            tensors=outputs.tensors,
            is_cached=outputs.is_cached,
            degraded=DegradedBy.FALLBACK,
            warnings=(
                f"The server is overloaded: {fallback.version} answered, since {ask.model.version} could not in time.",
            ),
        )

    @staticmethod
    async def _by_stale(ask: Ask) -> Outputs | None:
        responses = ask.served.responses
        kept = None if responses is None else responses.get_stale(await responses.key_of(ask.plan))
        if kept is None:
            return None
        return Outputs(
            ask=ask,
            tensors=kept.arrays,
            is_cached=True,
            degraded=DegradedBy.STALE,
            warnings=(f"The server is overloaded: this answer to the same input is {kept.age_s:.1f} s old.",),
        )
