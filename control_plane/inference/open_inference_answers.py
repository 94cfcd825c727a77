"""Open Inference Protocol (v2): an inference answer's body, in JSON or with binary tensor data after it.

Source: as `open_inference.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from control_plane.inference.open_inference import InferRequest
from control_plane.inference.open_inference_tensors import DTYPES
from control_plane.inference.plans import contiguous
from control_plane.inference.tensors import Array
from control_plane.models.registry import ModelVersion

_DATATYPES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorAnswer:
    """What a model answered; arrays by Triton tensor name."""

    model: ModelVersion
    outputs: Mapping[str, Array]
    is_cached: bool = False
    degraded: str | None = None
    warnings: tuple[str, ...] = ()
    ab_test_group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedAnswer:
    """An answer's body; `header_length` is the JSON's where binary data follows it."""

    body: bytes
    header_length: int | None


def encode_infer(request: InferRequest, answer: TensorAnswer) -> EncodedAnswer:
    """Writes the answer: the outputs in the order in which they were asked for, flat in row-major order.

    NaN and infinities are null in JSON.
    """
    names = {tensor.name: tensor.triton_name for tensor in answer.model.card.outputs}
    wanted = {output.name: output.is_binary for output in request.outputs} or dict.fromkeys(
        names, request.is_binary_output
    )
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, is_binary in wanted.items():
        array = answer.outputs[names[name]]
        output: dict[str, Any] = {"name": name, "datatype": _DATATYPES[array.dtype], "shape": array.shape}
        if is_binary:
            data = array.tobytes()
            output["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            output["data"] = contiguous(array).reshape(-1)
        outputs.append(output)
    document: dict[str, Any] = {"model_name": request.name, "model_version": answer.model.version}
    if request.id is not None:
        document["id"] = request.id
    parameters: dict[str, Any] = {"cached": True} if answer.is_cached else {}
    if answer.degraded is not None:
        parameters["degraded"] = answer.degraded
    if answer.ab_test_group is not None:
        parameters["ab_test_group"] = answer.ab_test_group
    if answer.warnings:
        parameters["warning"] = " ".join(answer.warnings)
    if parameters:
        document["parameters"] = parameters
    document["outputs"] = outputs
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not parts:
        return EncodedAnswer(body=text, header_length=None)
    return EncodedAnswer(body=b"".join((text, *parts)), header_length=len(text))
