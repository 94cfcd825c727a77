"""Inference by Triton's HTTP service with the binary tensor extension: a quarter of gRPC's cost in Python.

All else (health, the repository API) goes by gRPC, `client.py`.

Source: https://github.com/kserve/open-inference-protocol and Triton's `protocol/extension_binary_data.md`.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np

from control_plane.errors import InferenceFailed
from control_plane.triton.datatypes import DATATYPES, DTYPES, Array
from control_plane.triton.http_connection import ConnectionLost, HttpConnections, Response
from control_plane.triton.translation import late, refusal, unreachable

_HEADER_LENGTH = b"inference-header-content-length"
_INVALID = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_ENTITY_TOO_LARGE})

Signature = tuple[tuple[str, "np.dtype[Any]", tuple[int, ...]], ...]


class HttpInference:
    """Inference calls to one Triton. Make it with `connect_http`."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self._host = parts.netloc
        self._connections = HttpConnections(host=parts.hostname or "localhost", port=parts.port or 80)

    async def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], *, timeout_s: float
    ) -> dict[str, Array]:
        """Runs one inference; as `TritonClient.infer`, which it replaces.

        Args:
            model: Triton's model name.
            inputs: Arrays by Triton tensor name, each with a leading batch axis.
            outputs: Triton names of the wanted outputs.
            timeout_s: Deadline in seconds.

        Returns:
            Read-only arrays by Triton tensor name.

        Raises:
            ModelNotReady: Triton doesn't hold the model, or is unloading it.
            InvalidInput: Triton refused the tensors.
            InferenceFailed: The model failed, or the answer can't be read.
            TritonUnavailable, DeadlineExceeded: see there.
        """
        request = infer_request(self._host, model, inputs, tuple(outputs))
        try:
            response = await self._connections.ask(request, timeout_s=timeout_s)
        except TimeoutError as error:
            raise late(model) from error
        except ConnectionLost as error:
            raise unreachable() from error
        if response.status != HTTPStatus.OK:
            raise _refused(model, response)
        try:
            return read_tensors(response)
        except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
            raise InferenceFailed(f"Triton's answer for {model} can't be read.") from error

    def close(self) -> None:
        """Closes the idle connections."""
        self._connections.close()


@asynccontextmanager
async def connect_http(url: str) -> AsyncIterator[HttpInference]:
    """Opens inference by HTTP to `url` (http://host:port); connecting is lazy, so Triton may come up later."""
    inference = HttpInference(url)
    try:
        yield inference
    finally:
        inference.close()
        await asyncio.sleep(0)  # the loop's turn in which they are closed


def infer_request(host: str, model: str, inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> bytes:
    """A whole POST: a head that is the same for every call of its shape, then the tensors' bytes.

    Args:
        host: For the Host header.
        model: Triton's model name.
        inputs: Arrays by Triton tensor name.
        outputs: Triton names of the wanted outputs.
    """
    signature = tuple((name, array.dtype, array.shape) for name, array in inputs.items())
    parts: list[Any] = [_head(host, model, signature, outputs)]
    parts += [array.data if array.flags.c_contiguous else array.tobytes() for array in inputs.values()]
    return b"".join(parts)


@lru_cache(maxsize=512)
def _head(host: str, model: str, inputs: Signature, outputs: tuple[str, ...]) -> bytes:
    sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in inputs]
    document = msgspec.json.encode(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": shape,
                    "datatype": DATATYPES[dtype],
                    "parameters": {"binary_data_size": size},
                }
                for (name, dtype, shape), size in zip(inputs, sizes, strict=True)
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
        }
    )
    head = (
        f"POST /v2/models/{quote(model, safe='')}/infer HTTP/1.1\r\n"
        f"Host: {host}\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(document)}\r\n"
        f"Content-Length: {len(document) + sum(sizes)}\r\n\r\n"
    )
    return head.encode("ascii") + document


def read_tensors(response: Response) -> dict[str, Array]:
    """The tensors of a response, read-only, by name.

    Raises:
        ValueError, KeyError, TypeError, msgspec.MsgspecError: it isn't what the extension says.
    """
    length = int(response.headers[_HEADER_LENGTH])
    # Sliced apart, since the slice's first byte is aligned; the head is as long as it happens to be.
    tensors, data = _read_head(response.body[:length]), response.body[length:]
    arrays: dict[str, Array] = {}
    start = 0
    for name, dtype, shape, count in tensors:
        array = np.frombuffer(data, dtype, count, start).reshape(shape)
        if start % dtype.itemsize:
            array = array.copy()
            array.flags.writeable = False
        arrays[name] = array
        start += count * dtype.itemsize
    if start != len(data):
        raise ValueError(f"expected {start} bytes of tensors, got {len(data)}")
    return arrays


class _BinarySize(msgspec.Struct):
    binary_data_size: int


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _BinarySize


class _Answer(msgspec.Struct):
    outputs: tuple[_Tensor, ...]


class _Error(msgspec.Struct):
    error: str


_answer = msgspec.json.Decoder(_Answer)
_error = msgspec.json.Decoder(_Error)


@lru_cache(maxsize=512)
def _read_head(head: bytes) -> tuple[tuple[str, "np.dtype[Any]", tuple[int, ...], int], ...]:
    """Name, dtype, shape and number of elements of each tensor."""
    found = []
    for tensor in _answer.decode(head).outputs:
        dtype = DTYPES[tensor.datatype]
        count = math.prod(tensor.shape)
        if count * dtype.itemsize != tensor.parameters.binary_data_size:
            raise ValueError(f"{tensor.name} has {tensor.parameters.binary_data_size} bytes")
        found.append((tensor.name, dtype, tensor.shape, count))
    return tuple(found)


def _refused(model: str, response: Response) -> Exception:
    try:
        text = _error.decode(response.body).error
    except msgspec.MsgspecError:
        text = f"HTTP {response.status}"
    return refusal(model, text, is_invalid=response.status in _INVALID)
