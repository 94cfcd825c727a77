"""Triton's gRPC service, as coroutines: inference, health, and the model repository API.

Inference goes by HTTP where that is open (`http_inference.py`), which costs less. Builds the protobuf messages itself,
since `tritonclient`'s wrapper classes cost more than the call on small tensors; the messages and the stub are
tritonclient's. Every call has a deadline. Foreign errors leave this module as `control_plane.errors` only.

Source: https://github.com/kserve/open-inference-protocol (inference, health) and Triton's
`protocol/extension_model_repository.md` (index, load, unload).
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from control_plane.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ModelLoadFailed,
    ModelNotReady,
    TritonUnavailable,
)
from control_plane.triton.datatypes import DATATYPES, DTYPES, Array
from control_plane.triton.translation import is_not_ready, late, refusal, unreachable

_MAX_MESSAGE_BYTES = 512 * 1024 * 1024
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # No keep-alive pings: Triton 2.51 answers idle ones with GOAWAY too_many_pings. Every call has a deadline instead.
    # A killed Triton comes back within seconds: gRPC's default back-off would wait up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

_RAW_INPUT_CONTENTS = bytes(
    [service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2]
)


def infer_message(model: str, inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> bytes:
    """A serialised ModelInferRequest: a head that is the same for every call of its shape, then the tensors' bytes.

    Concatenated protobuf messages are one message, so the repeated field `raw_input_contents` can follow the rest.

    Args:
        model: Triton's model name.
        inputs: Arrays by Triton tensor name, C-contiguous.
        outputs: Triton names of the wanted outputs.
    """
    signature = tuple((name, array.dtype, array.shape) for name, array in inputs.items())
    parts: list[Any] = [_infer_head(model, signature, outputs)]
    for array in inputs.values():
        parts += (
            _RAW_INPUT_CONTENTS,
            _varint(array.nbytes),
            array.data if array.flags.c_contiguous else array.tobytes(),
        )
    return b"".join(parts)


@lru_cache(maxsize=512)
def _infer_head(
    model: str, inputs: tuple[tuple[str, "np.dtype[Any]", tuple[int, ...]], ...], outputs: tuple[str, ...]
) -> bytes:
    request = service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=DATATYPES[dtype], shape=shape)
            for name, dtype, shape in inputs
        ],
        outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
    )
    return cast("bytes", request.SerializeToString())


@lru_cache(maxsize=512)
def _varint(value: int) -> bytes:
    """Protobuf's variable-length integer."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """A row of Triton's repository index: READY, LOADING, UNLOADING, UNAVAILABLE or "" (never loaded)."""

    name: str
    state: str
    reason: str


class TritonClient:
    """One multiplexed gRPC channel. Make it with `connect`."""

    def __init__(self, channel: grpc.aio.Channel, url: str) -> None:
        self.url = url
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        # The stub's own method takes a message, and costs its making and its copies.
        self._infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], *, timeout_s: float
    ) -> dict[str, Array]:
        """Runs one inference.

        Args:
            model: Triton's model name.
            inputs: Arrays by Triton tensor name, C-contiguous, each with a leading batch axis.
            outputs: Triton names of the wanted outputs.
            timeout_s: Deadline in seconds.

        Returns:
            Read-only arrays by Triton tensor name.

        Raises:
            ModelNotReady: Triton doesn't hold the model, or is unloading it.
            InvalidInput: Triton refused the tensors.
            InferenceFailed: The model failed.
            TritonUnavailable, DeadlineExceeded: see there.
        """
        request = infer_message(model, inputs, tuple(outputs))
        with _translated(model):
            response = await self._infer(request, timeout=timeout_s)
        return {
            tensor.name: np.frombuffer(raw, dtype=DTYPES[tensor.datatype]).reshape(tuple(tensor.shape))
            for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }

    async def is_live(self, *, timeout_s: float = 1.0) -> bool:
        """Whether Triton answers. Not its readiness: by default that fails after any one model failed to load."""
        try:
            with _translated("server"):
                answer = await self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=timeout_s)
        except (TritonUnavailable, DeadlineExceeded, InferenceFailed, ModelNotReady):
            return False
        return bool(answer.live)

    async def is_model_ready(self, model: str, *, timeout_s: float = 2.0) -> bool:
        """Whether Triton holds the model and would answer for it."""
        request = service_pb2.ModelReadyRequest(name=model)
        with _translated(model):
            answer = await self._stub.ModelReady(request, timeout=timeout_s)
        return bool(answer.ready)

    async def repository_index(self, *, timeout_s: float = 5.0) -> tuple[IndexEntry, ...]:
        """Every model that Triton sees in its repository, with its state."""
        with _translated("repository"):
            answer = await self._stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=timeout_s)
        return tuple(IndexEntry(name=row.name, state=row.state, reason=row.reason) for row in answer.models)

    async def load(self, model: str, *, timeout_s: float) -> None:
        """Loads a model; returns when it is READY. Loading an unchanged, ready model is a no-op.

        A ready model whose files changed is replaced while it goes on serving.

        Raises:
            ModelLoadFailed: Triton could not load it (the detail is Triton's reason).
            TritonUnavailable, DeadlineExceeded: see there.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        try:
            with _translated(model):
                await self._stub.RepositoryModelLoad(request, timeout=timeout_s)
        except (InvalidInput, InferenceFailed, ModelNotReady) as error:
            # Whatever words Triton has for it, and they quote the backend's: a failed load is a failed load.
            raise ModelLoadFailed(
                f"Triton could not load {model}: {_reason(error)}",
                remedy="Correct the model's files, then load it again with overwrite.",
            ) from error

    async def unload(self, model: str, *, timeout_s: float = 10.0) -> None:
        """Starts unloading; the model shows UNLOADING in the index until its requests in flight are done."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        with _translated(model):
            await self._stub.RepositoryModelUnload(request, timeout=timeout_s)

    async def server_version(self, *, timeout_s: float = 2.0) -> str:
        """Triton's version string."""
        with _translated("server"):
            answer = await self._stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=timeout_s)
        return str(answer.version)


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[TritonClient]:
    """Opens the channel to `url` (host:port); connecting is lazy, so Triton may come up later."""
    async with grpc.aio.insecure_channel(url, options=_CHANNEL_OPTIONS) as channel:
        yield TritonClient(channel, url)


@contextmanager
def _translated(subject: str) -> Iterator[None]:
    """Turns gRPC's errors about `subject` into ours."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _translate(error, subject) from error
    except asyncio.InvalidStateError as error:
        raise TritonUnavailable("The connection to Triton was closed.") from error


def _reason(error: BaseException) -> str:
    cause = error.__cause__
    text = (cause.details() if isinstance(cause, grpc.aio.AioRpcError) else None) or str(error)
    # What follows is the backend's Python traceback.
    return text.partition("\n\nAt:\n")[0].strip().removesuffix(";")


def _translate(error: grpc.aio.AioRpcError, subject: str) -> Exception:
    code = error.code()
    text = cast("str", error.details()) or code.name
    if is_not_ready(text):
        return refusal(subject, text, is_invalid=False)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return late(subject)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return unreachable()
    return refusal(subject, text, is_invalid=code == grpc.StatusCode.INVALID_ARGUMENT)
