"""The same windows as request bodies of every kind that is compared."""

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from control_plane.inference.hybrid import HybridModel
from control_plane.inference.requests import decode_predict
from control_plane.models.card import ModelCard, read_card
from control_plane.triton.client import infer_message

TYPE = "cnn_lstm_hybrid"
JSON_TYPE = "application/json"
NPY_TYPE = "application/x-npy"
ARROW_TYPE = "application/vnd.apache.arrow.stream"
GRPC_HEADERS = {"content-type": "application/grpc", "te": "trailers"}
HEADER_LENGTH = "Inference-Header-Content-Length"
WINDOWS = Path(__file__).parent.parent / "checkpoints/eurusd_test_windows.npz"

Window = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonBodies:
    """Bodies for Triton's HTTP port, with the binary extension; all have one header length."""

    bodies: list[bytes]
    header_length: int


def demo_windows(count: int = 64) -> list[Window]:
    """Windows of real market data from the test period: float32 [12 channels, 60 hours], different ones.

    At most 64.
    """
    return [np.ascontiguousarray(window, dtype=np.float32) for window in np.load(WINDOWS)["x"][:count]]


def random_windows(count: int, channels: int, length: int, *, seed: int = 0) -> list[Window]:
    """Windows of normal noise, float32 [channels, length], different ones."""
    random = np.random.default_rng(seed)
    return [random.standard_normal((channels, length), dtype=np.float32) for _ in range(count)]


def json_bodies(windows: Sequence[Window], version: str = "v1.0", **options: Any) -> list[bytes]:
    """For POST /predict, as a client that has float32 would write them; `options` are further fields."""
    return [
        orjson.dumps(
            {"model_type": TYPE, "model_version": version, "data": window, **options},
            option=orjson.OPT_SERIALIZE_NUMPY,
        )
        for window in windows
    ]


def npy_bodies(windows: Sequence[Window]) -> list[bytes]:
    """NumPy files."""
    bodies = []
    for window in windows:
        file = io.BytesIO()
        np.save(file, window, allow_pickle=False)
        bodies.append(file.getvalue())
    return bodies


def arrow_bodies(windows: Sequence[Window]) -> list[bytes]:
    """Arrow streams of one fixed-shape tensor."""
    bodies = []
    for window in windows:
        table = pa.table({"data": pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([window]))})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        bodies.append(bytes(sink.getvalue()))
    return bodies


def batch_body(requests: Sequence[bytes]) -> bytes:
    """For POST /predict/batch, from bodies of POST /predict."""
    return b'{"requests":[' + b",".join(requests) + b"]}"


def card_of(repository: Path, version: str = "v1.0") -> ModelCard:
    """A published version's card."""
    return read_card(repository / f"{TYPE}-{version}")


def outputs_of(card: ModelCard) -> tuple[str, ...]:
    """Triton's names of the outputs that a prediction with all uncertainty asks for, so that all ask for the same."""
    channels = card.inputs[0].shape[0]
    body = json.dumps({"model_type": TYPE, "data": [[0.0]] * channels}).encode()
    return HybridModel(card).plan(decode_predict(body), max_rows=1).outputs


def grpc_body(card: ModelCard, rows: Window) -> bytes:
    """A ModelInferRequest in its gRPC frame: one byte for "not compressed", four for the length.

    Args:
        card: The version's.
        rows: float32 [batch, channels, time].

    Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, Length-Prefixed-Message.
    """
    message = infer_message(card.triton_model, {card.inputs[0].triton_name: rows}, outputs_of(card))
    return struct.pack(">BI", 0, len(message)) + message


def triton_http_bodies(card: ModelCard, windows: Sequence[Window]) -> TritonBodies:
    """For POST /v2/models/…/infer of Triton itself: binary in, binary out."""
    wanted = [InferRequestedOutput(name, binary_data=True) for name in outputs_of(card)]
    bodies, lengths = [], set()
    for window in windows:
        rows = window[np.newaxis]
        tensor = InferInput(card.inputs[0].triton_name, list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows, binary_data=True)
        body, length = InferenceServerClient.generate_request_body([tensor], outputs=wanted)
        bodies.append(bytes(body))
        lengths.add(length)
    (header_length,) = lengths
    return TritonBodies(bodies=bodies, header_length=header_length)
