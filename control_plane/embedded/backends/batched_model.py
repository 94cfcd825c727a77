"""What the Python-based backends share: merging requests, answering each by itself, reading a model's settings.

`layout.py` copies this file beside each backend's `model.py`. It runs in Triton's stub process, so it imports the
standard library, numpy and Triton's utilities only.
"""

import asyncio  # noqa: F401  Triton's stub imports it on the first request, which would wait 20 ms for it
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

Arrays = list[np.ndarray]
WARM_UP_LENGTH = 16  # of each dynamic axis


class BatchedModel(ABC):
    """One instance of one model. A backend adds how to open the file and how to run the tensors through it."""

    default_file: str
    """The model's file name where the configuration names none."""
    config: dict[str, Any]
    """The model's configuration, as Triton resolved it."""
    inputs: list[str]
    """Names of the inputs, in the order that `run` gets them."""

    @abstractmethod
    def open(self, path: Path, *, gpu: int | None) -> None:
        """Loads the file and sets `inputs`.

        Args:
            path: The model's file.
            gpu: The device to use; None for the CPU.
        """

    @abstractmethod
    def run(self, arrays: Arrays, wanted: Sequence[str]) -> Arrays:
        """Computes the wanted outputs.

        Args:
            arrays: One for each of `inputs`, `[batch, ...]`, or `[...]` where `max_batch_size` is 0.
            wanted: Names of outputs.

        Returns:
            One array for each wanted output, C-contiguous, on the CPU.
        """

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the model; called by Triton, once.

        Raises:
            pb_utils.TritonModelException: The model can't be served; the text says why.
        """
        self.config = json.loads(args["model_config"])
        self._batched = int(self.config.get("max_batch_size", 0)) > 0
        folder = Path(args["model_repository"]) / args["model_version"]
        path = folder / (self.config.get("default_model_filename") or self.default_file)
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        try:
            if not path.is_file():
                raise ValueError(
                    f"The model file {path.name} is not in {folder}; put it there or set default_model_filename."
                )
            self.open(path, gpu=gpu)
            self._warm_up()
        except Exception as error:
            raise pb_utils.TritonModelException(f"{path.name} can't be served: {error}") from error

    def _warm_up(self) -> None:
        """Runs zeros twice, since first runs allocate and compile: no caller should wait for that."""
        batch = [1] if self._batched else []
        declared = {tensor["name"]: tensor for tensor in self.config["input"]}
        arrays = []
        for name in self.inputs:
            datatype = pb_utils.triton_string_to_numpy(declared[name]["data_type"])
            dims = [WARM_UP_LENGTH if int(dim) < 0 else int(dim) for dim in declared[name]["dims"]]
            filler = b"" if datatype == np.object_ else 0
            arrays.append(np.full(batch + dims, filler, dtype=datatype))
        for _ in range(2):
            try:
                self.run(arrays, self.names("output"))
            except Exception as error:  # noqa: BLE001  a model may refuse such input and still serve real ones
                pb_utils.Logger.log_info(f"no warm-up: {error}")
                return

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers the requests that Triton's batcher put together; called by Triton.

        Requests with equal shapes and equal wanted outputs run as one batch. If such a batch fails, its members
        run one by one, so that each gets its own answer or its own error.

        Returns:
            One response for each request, in the same order.
        """
        responses: list[Any] = [None] * len(requests)
        groups: dict[Any, list[tuple[int, Arrays]]] = {}
        for position, request in enumerate(requests):
            if request.is_cancelled():
                responses[position] = _failure("The caller cancelled it.", pb_utils.TritonError.CANCELLED)
                continue
            try:
                arrays = [_read(request, name) for name in self.inputs]
                wanted = tuple(request.requested_output_names())
            except Exception as error:  # noqa: BLE001  one unreadable request must not spoil its neighbours
                responses[position] = _failure(str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            # Without a batch axis there is nothing to join on: every request is a group of its own.
            shapes = tuple(array.shape[1:] for array in arrays) if self._batched else position
            groups.setdefault((shapes, wanted), []).append((position, arrays))
        for (_, wanted), members in groups.items():
            self._answer(wanted, members, responses)
        return responses

    def _answer(
        self, wanted: tuple[str, ...], members: list[tuple[int, Arrays]], responses: list[Any]
    ) -> None:
        try:
            results = self._run_merged(wanted, [arrays for _, arrays in members])
        except Exception as error:  # noqa: BLE001  the boundary to Triton: every failure becomes an answer
            if len(members) == 1:
                responses[members[0][0]] = _failure(str(error))
                return
            for member in members:
                self._answer(wanted, [member], responses)
            return
        for (position, _), arrays in zip(members, results, strict=True):
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(wanted, arrays, strict=True)]
            responses[position] = pb_utils.InferenceResponse(output_tensors=tensors)

    def _run_merged(self, wanted: tuple[str, ...], members: list[Arrays]) -> list[Arrays]:
        if len(members) == 1:  # no copy: the arrays lie in the memory that Triton shares with this process
            return [self.run(members[0], wanted)]
        joined = [np.concatenate(column) for column in zip(*members, strict=True)]
        results = self.run(joined, wanted)
        counts = [arrays[0].shape[0] for arrays in members]
        for name, result in zip(wanted, results, strict=True):
            if result.ndim == 0 or result.shape[0] != sum(counts):
                raise ValueError(
                    f"The output {name!r} has shape {list(result.shape)} for {sum(counts)} rows."
                )
        ends = np.cumsum(counts)
        return [
            [result[end - count : end] for result in results] for count, end in zip(counts, ends, strict=True)
        ]

    def names(self, side: str) -> list[str]:
        """Names of the tensors that the configuration declares on a side, `input` or `output`."""
        return [tensor["name"] for tensor in self.config.get(side, [])]

    def parameter(self, key: str) -> str | None:
        """The text of a parameter, None where the configuration doesn't set it."""
        entry = self.config.get("parameters", {}).get(key)
        return None if entry is None else str(entry["string_value"])

    def choice(self, key: str, choices: dict[str, Any]) -> Any:
        """The meaning of a parameter with a closed set of texts, None where it isn't set.

        Raises:
            ValueError: another text.
        """
        text = self.parameter(key)
        if text is None:
            return None
        if text.lower() not in choices:
            raise ValueError(f"the parameter {key} is {text!r}; it must be one of {list(choices)}")
        return choices[text.lower()]

    def count(self, key: str, *, default: int) -> int:
        """A parameter that is a whole number, 0 or more.

        Raises:
            ValueError: another text.
        """
        text = self.parameter(key)
        if text is None:
            return default
        if not text.isdigit():
            raise ValueError(f"the parameter {key} is {text!r}; it must be a whole number, 0 or more")
        return int(text)


def _read(request: Any, name: str) -> np.ndarray:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise ValueError(f"The input {name!r} is missing.")
    return tensor.as_numpy()


def _failure(message: str, code: int | None = None) -> Any:
    error = pb_utils.TritonError(message) if code is None else pb_utils.TritonError(message, code)
    return pb_utils.InferenceResponse(error=error)
