"""The versions that this worker serves: for each its kind, its dispatcher and its accounts, made on first use."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from control_plane.errors import ShuttingDown
from control_plane.inference.accounts import ModelAccounts
from control_plane.inference.decisions import WeightsSource
from control_plane.inference.dispatcher import Dispatcher, DispatcherLimits, Infer
from control_plane.inference.hybrid import HybridModel
from control_plane.inference.plans import Kind
from control_plane.inference.ready_made import ReadyMadeModel
from control_plane.inference.requests import HYBRID, RL_ENSEMBLE
from control_plane.inference.response_cache import ResponseCache
from control_plane.inference.rl_ensemble import RLEnsembleModel
from control_plane.models.card import ModelCard
from control_plane.models.registry import ModelVersion
from control_plane.models.tuning.choice import default_calls
from control_plane.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What it takes to serve one version."""

    card: ModelCard
    kind: Kind
    dispatcher: Dispatcher
    accounts: ModelAccounts
    responses: ResponseCache | None
    """None: the version keeps none. It goes with the card."""


class ServedModels:
    """All of them.

    Args:
        infer: Makes one call to Triton.
        settings: For the dispatchers' limits.
        registered: The version of a Triton name; the dispatchers of those that are gone go once they are idle.
        weights: Which weights of an ensemble are in force.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        *,
        infer: Infer,
        settings: Settings,
        registered: Callable[[str], ModelVersion | None],
        weights: WeightsSource,
        clock: Callable[[], float],
    ) -> None:
        self._infer = infer
        self._settings = settings
        self._registered = registered
        self._weights = weights
        self._clock = clock
        self._served: dict[str, ServedModel] = {}
        self._retired: list[Dispatcher] = []
        self._is_closed = False
        self._secret = secrets.token_bytes(32)

    def of(self, model: ModelVersion) -> ServedModel:
        """The served model of a version; made anew when its card has changed.

        Raises:
            ShuttingDown: `close` was called.
        """
        if self._is_closed:
            raise ShuttingDown("The server is stopping.", remedy="Try another replica, or again shortly.")
        served = self._served.get(model.key)
        if served is None or served.card is not model.card:
            served = self._served[model.key] = self._serve(model, served)
        return served

    def forget_unregistered(self) -> None:
        """Drops idle dispatchers of versions that are no longer registered, and kept outputs that have expired."""
        for key, served in list(self._served.items()):
            model = self._registered(key)
            if model is None or model.card is not served.card:
                _forget_responses(served)
            elif served.responses is not None:
                served.responses.sweep()
            if model is None and served.dispatcher.is_idle:
                del self._served[key]
        self._retired = [dispatcher for dispatcher in self._retired if not dispatcher.is_idle]

    def figures(self) -> dict[str, dict[str, int]]:
        """Requests waiting and calls in flight, by Triton model."""
        return {
            key: {"waiting": served.dispatcher.waiting, "calls_in_flight": served.dispatcher.in_flight}
            for key, served in self._served.items()
        }

    async def close(self, *, timeout_s: float) -> None:
        """Drains all dispatchers."""
        self._is_closed = True
        dispatchers = [served.dispatcher for served in self._served.values()] + self._retired
        await asyncio.gather(*(dispatcher.close(timeout_s=timeout_s) for dispatcher in dispatchers))

    def _serve(self, model: ModelVersion, known: ServedModel | None) -> ServedModel:
        self.forget_unregistered()
        if known is not None:
            _forget_responses(known)
        limits = limits_of(model.card, self._settings)
        if known is not None and known.dispatcher.limits == limits:
            dispatcher = known.dispatcher
        else:
            dispatcher = Dispatcher(model=model.key, infer=self._infer, limits=limits, clock=self._clock)
            if known is not None:
                self._retired.append(known.dispatcher)
        return ServedModel(
            card=model.card,
            kind=self._kind(model),
            dispatcher=dispatcher,
            accounts=ModelAccounts(model.model_type, model.version),
            responses=self._responses(model),
        )

    def _kind(self, model: ModelVersion) -> Kind:
        if model.model_type == HYBRID:
            return HybridModel(model.card)
        if model.model_type == RL_ENSEMBLE:
            return RLEnsembleModel(model.card, self._weights)
        return ReadyMadeModel(model.card)

    def _responses(self, model: ModelVersion) -> ResponseCache | None:
        options = model.card.serving.response_cache
        if options is None:
            return None
        return ResponseCache(options, model=model.key, secret=self._secret, clock=self._clock)


def _forget_responses(served: ServedModel) -> None:
    if served.responses is not None:
        served.responses.close()


def limits_of(card: ModelCard, settings: Settings) -> DispatcherLimits:
    """The dispatcher's bounds for one version: what was tuned, within what the settings and the model allow.

    `batch_processing.calls_in_flight` is an operator's word: where it is set, it holds.
    """
    batching = settings.batch_processing
    tuning = card.serving.tuning
    max_rows = max(1, min(batching.max_batch_size, card.max_batch_size))
    tuned_calls = default_calls(card.instance_count) if tuning is None else tuning.calls_in_flight
    return DispatcherLimits(
        max_rows=max_rows if tuning is None else min(max_rows, tuning.rows_per_call),
        calls_in_flight=batching.calls_in_flight or tuned_calls,
        max_queue_size=batching.max_queue_size,
        hold_back_s=batching.batch_timeout_ms / 1000,
        call_timeout_s=settings.triton.timeout_s,
    )
