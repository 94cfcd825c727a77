"""The async client. `aio.py` and `sync.py` are the same but for `await`; a test holds them to it."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx

from control_plane.client import calls
from control_plane.client.errors import ClientError, UnsupportedMediaType
from control_plane.client.experiments import Experiment, ExperimentResults
from control_plane.client.options import (
    BodyFormat,
    Data,
    ExperimentOptions,
    FeedbackItem,
    LoadOptions,
    PredictItem,
    PredictOptions,
    WarmUpOptions,
)
from control_plane.client.results import (
    AliasMove,
    BatchResult,
    EnsembleInfo,
    FeedbackResult,
    Health,
    LoadedModel,
    ModelInfo,
    Prediction,
    WarmedModel,
)
from control_plane.client.retries import Attempts, RetryPolicy
from control_plane.client.transport import answer_of, checked_url, failure_of, request_of

Result = TypeVar("Result")

_TIMEOUT_S = 30.0


class AsyncClient:
    """A client of one server. The tasks of one event loop may share it.

    Args:
        base_url: Such as `http://localhost:8080`.
        timeout_s: Deadline of each call, retries included; a prediction's `timeout_ms` goes before it.
        retries: When calls are tried again.
        body_format: How a prediction's data travels; a server that doesn't read `.npy` gets JSON.
        headers: Sent with every call, such as an API key.
        transport: httpx's, for tests and special networks.

    Raises:
        InvalidRequest: `base_url` is no http or https address.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = _TIMEOUT_S,
        retries: RetryPolicy | None = None,
        body_format: BodyFormat = BodyFormat.NPY,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._retries = retries or RetryPolicy()
        self._body_format = body_format
        self._http = httpx.AsyncClient(
            base_url=checked_url(base_url),
            headers={"Accept": "application/json", **(headers or {})},
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    async def predict(self, model_type: str, data: Data, **options: Unpack[PredictOptions]) -> Prediction:
        """Predicts one to 1,000 rows.

        Args:
            model_type: `cnn_lstm_hybrid`, `rl_ensemble`, or any registered type.
            data: An array as docs/api.md says, or arrays by input name.
            options: See `PredictOptions`.

        Raises:
            ClientError: see `errors.py`.
        """
        try:
            return await self._run(calls.predict(model_type, data, options, self._body_format))
        except UnsupportedMediaType:
            if self._body_format is BodyFormat.JSON:
                raise
            self._body_format = BodyFormat.JSON
            return await self._run(calls.predict(model_type, data, options, self._body_format))

    async def predict_batch(self, items: Sequence[PredictItem], *, priority: int = 1) -> BatchResult:
        """Predicts up to 100 items at once, each failing alone."""
        return await self._run(calls.predict_batch(items, priority))

    async def load_model(
        self, model_type: str, version: str, *, timeout_s: float = 600.0, **options: Unpack[LoadOptions]
    ) -> LoadedModel:
        """Loads a registered version, or with `file_path` exports, publishes and loads a checkpoint."""
        return await self._run(calls.load_model(model_type, version, options), timeout_s)

    async def unload_model(self, model_type: str, version: str) -> None:
        """Unloads a version once its requests in flight are done."""
        await self._run(calls.unload_model(model_type, version))

    async def warm_up(
        self,
        models: Sequence[tuple[str, str]],
        *,
        timeout_s: float = 600.0,
        **options: Unpack[WarmUpOptions],
    ) -> tuple[WarmedModel, ...]:
        """Loads (model type, version) pairs ahead, and runs one inference on each; with `tune`, measures them."""
        return await self._run(calls.warm_up(models, options), timeout_s)

    async def models(self) -> tuple[ModelInfo, ...]:
        """All registered versions."""
        return await self._run(calls.models())

    async def model(self, model_type: str, version: str = "latest") -> ModelInfo:
        """One version, with its model card."""
        return await self._run(calls.model(model_type, version))

    async def set_alias(self, model_type: str, alias: str, version: str) -> AliasMove:
        """Points an alias to a version."""
        return await self._run(calls.set_alias(model_type, alias, version))

    async def remove_alias(self, model_type: str, alias: str) -> AliasMove:
        """Removes an alias."""
        return await self._run(calls.remove_alias(model_type, alias))

    async def give_feedback(self, items: Sequence[FeedbackItem]) -> tuple[FeedbackResult, ...]:
        """Says what came of predictions, in requests of at most 1,000 items; each counts once, however often sent."""
        given: list[FeedbackResult] = []
        for part in calls.give_feedback(items):
            taken = await self._run(part)
            given.extend(taken)
        return tuple(given)

    async def ensemble(self, model: str = "rl_ensemble") -> EnsembleInfo:
        """Weights and posteriors of `rl_ensemble` (its newest version) or `rl_ensemble-<version or alias>`."""
        return await self._run(calls.ensemble(model))

    async def create_experiment(
        self,
        experiment_id: str,
        model_variants: Mapping[str, tuple[str, str]],
        traffic_split: Mapping[str, float],
        **options: Unpack[ExperimentOptions],
    ) -> Experiment:
        """Begins an experiment between (model type, version) pairs by variant, in the order given."""
        return await self._run(calls.create_experiment(experiment_id, model_variants, traffic_split, options))

    async def experiments(self) -> tuple[Experiment, ...]:
        """All experiments, oldest first."""
        return await self._run(calls.experiments())

    async def experiment_results(self, experiment_id: str) -> ExperimentResults:
        """What an experiment shows; one may look as often as one likes."""
        return await self._run(calls.experiment_results(experiment_id))

    async def stop_experiment(self, experiment_id: str) -> Experiment:
        """Stops an experiment; its results stay readable."""
        return await self._run(calls.stop_experiment(experiment_id))

    async def health(self) -> Health:
        """The server's health; unhealthy is an answer, too."""
        return await self._run(calls.health())

    async def is_ready(self) -> bool:
        """Whether the server can predict."""
        return await self._run(calls.is_ready())

    async def _run(self, call: calls.Call[Result], timeout_s: float | None = None) -> Result:
        attempts = Attempts(
            self._retries,
            timeout_s=call.timeout_s or timeout_s or self._timeout_s,
            is_idempotent=call.is_idempotent,
        )
        while True:
            pause_s = 0.0
            left_s = attempts.begin()
            try:
                response = await self._http.send(request_of(self._http, call.message(left_s), left_s))
            except httpx.HTTPError as error:
                failure, was_sent = failure_of(error)
                try:
                    pause_s = attempts.pause_after(failure, was_sent=was_sent)
                except ClientError as last:
                    raise last from error
            else:
                try:
                    return call.result(answer_of(response))
                except ClientError as error:
                    pause_s = attempts.pause_after(error)
            await asyncio.sleep(pause_s)
