"""POST /predict/batch: many predictions at once, each failing alone.

The members of one model and version enter its dispatcher in the same turn of the event loop, so that their rows travel
together in as few calls as they fit in; the groups run side by side.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import structlog

from control_plane.errors import ServingError
from control_plane.inference.answers import BatchAnswer, FailedPrediction, PredictAnswer, timestamp_now
from control_plane.inference.identifiers import uuid7
from control_plane.inference.predictor import Predictor
from control_plane.inference.requests import AnyPredictRequest, BatchRequest, decode_predict

log = structlog.get_logger()

_DECODED_AT_ONCE = 8
_Member = AnyPredictRequest | FailedPrediction


async def predict_batch(
    predictor: Predictor, batch: BatchRequest, *, received: float, clock: Callable[[], float]
) -> BatchAnswer:
    """Answers a batch.

    Args:
        predictor: The data plane.
        batch: At most 100 requests; its priority holds for all of them.
        received: When it was received, by the clock.
        clock: Monotonic time in seconds.
    """
    members = await _decode(predictor, batch.requests)
    results: dict[int, PredictAnswer | FailedPrediction] = {}

    async def answer(position: int, request: AnyPredictRequest) -> None:
        results[position] = await _answer(predictor, request, received=received, priority=batch.priority)

    async with asyncio.TaskGroup() as group:
        for position, member in _grouped(members):
            if isinstance(member, FailedPrediction):
                results[position] = member
            else:
                group.create_task(answer(position, member))
    return BatchAnswer(
        batch_id=uuid7(),
        results=tuple(results[position] for position in range(len(members))),
        total_processing_time_ms=round((clock() - received) * 1000, 3),
        timestamp=timestamp_now(),
    )


async def _decode(predictor: Predictor, requests: Sequence[msgspec.Raw]) -> list[_Member]:
    members: list[_Member] = []
    for position, raw in enumerate(requests):
        body = bytes(raw)
        try:
            members.append(decode_predict(body))
        except ServingError as error:
            request_id = _named_id(body) or uuid7()
            predictor.refused(error, request_id=request_id)
            members.append(FailedPrediction(request_id=request_id, error=error))
        if position % _DECODED_AT_ONCE == _DECODED_AT_ONCE - 1:
            await asyncio.sleep(0)  # a large batch must not hold up the other requests
    return members


def _grouped(members: Sequence[_Member]) -> list[tuple[int, _Member]]:
    """The members with their positions; those of one model and version one after the other."""

    def group(numbered: tuple[int, _Member]) -> tuple[str, str]:
        member = numbered[1]
        return ("", "") if isinstance(member, FailedPrediction) else (member.model_type, member.model_version)

    return sorted(enumerate(members), key=group)


async def _answer(
    predictor: Predictor, request: AnyPredictRequest, *, received: float, priority: int
) -> PredictAnswer | FailedPrediction:
    request_id = request.request_id or uuid7()
    try:
        return await predictor.predict(request, received=received, request_id=request_id, priority=priority)
    except ServingError as error:
        return FailedPrediction(request_id=request_id, error=error)
    except Exception:
        log.exception("unexpected_error", request_id=request_id)
        return FailedPrediction(
            request_id=request_id,
            error=ServingError("The server failed on this request. The log has the reason."),
        )


def _named_id(body: bytes) -> str | None:
    """The request_id that a refused member names, where it can be read."""
    try:
        named = msgspec.json.decode(body, type=_Named).request_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return named if isinstance(named, str) and 0 < len(named) <= 128 else None


class _Named(msgspec.Struct):
    request_id: str | None = None
