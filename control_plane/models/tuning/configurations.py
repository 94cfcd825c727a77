"""Instance counts and threads of a model: read from its config.pbtxt, varied, and written back.

Only through the protobuf message `ModelConfig`. Says nothing of files: `search.py` copies and writes them.

Source: Triton's `docs/user_guide/model_configuration.md` (instance groups), and the READMEs of onnxruntime_backend and
pytorch_backend (parameters).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from control_plane.errors import InferenceFailed, InvalidInput
from control_plane.models.tuning.choice import TOLERANCE
from control_plane.models.tuning.measurement import Curve

_THREADS: Mapping[str, str] = {
    "onnxruntime": "intra_op_thread_count",
    "pytorch": "INTRA_OP_THREAD_COUNT",
}
_GPU = "KIND_GPU"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Configuration:
    """How a model runs in Triton."""

    instance_count: int
    intra_op_threads: int | None
    """Threads of each instance; None where the backend has no such parameter, or it runs on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A configuration, and what was measured with it."""

    configuration: Configuration
    curve: Curve | None
    """None: Triton refused it, or it failed."""
    failure: str | None = None


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def read_config(data: bytes) -> Any:
    """A `ModelConfig` from the text of a config.pbtxt.

    Raises:
        InvalidInput: it isn't one.
    """
    try:
        return text_format.Parse(data.decode(), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidInput(
            "config.pbtxt isn't a Triton model configuration.", got=str(error)[:300]
        ) from error


def write_config(config: Any) -> bytes:
    """The text of a `ModelConfig`, read back and compared.

    Raises:
        InferenceFailed: it doesn't read back as the same message.
    """
    text = text_format.MessageToString(config).encode()
    if read_config(text) != config:
        raise InferenceFailed("config.pbtxt doesn't read back as it was written.")
    return bytes(text)


def configuration_of(config: Any) -> Configuration:
    """The present one.

    Raises:
        InvalidInput: there are several instance groups.
    """
    if len(config.instance_group) > 1:
        raise InvalidInput(
            f"{config.name} has {len(config.instance_group)} instance groups.",
            expected="one instance group: a search varies its count",
            remedy="Tune it without --search.",
        )
    count = config.instance_group[0].count if config.instance_group else 1
    threads = None
    if (key := _threads_key(config)) is not None:
        text = config.parameters[key].string_value if key in config.parameters else "1"
        threads = int(text) if text.isdigit() else 1
    return Configuration(instance_count=max(1, count), intra_op_threads=threads)


def with_configuration(config: Any, configuration: Configuration, *, name: str) -> Any:
    """A copy with another instance count, other threads, and another name."""
    changed = model_config_pb2.ModelConfig()
    changed.CopyFrom(config)
    changed.name = name
    if not changed.instance_group:
        changed.instance_group.add()
    changed.instance_group[0].count = configuration.instance_count
    key = _threads_key(config)
    if key is not None and configuration.intra_op_threads is not None:
        changed.parameters[key].string_value = str(configuration.intra_op_threads)
    return changed


def configurations_to_try(
    present: Configuration, *, cores: int, worker_threads: int
) -> tuple[Configuration, ...]:
    """The present one, then others, smallest first.

    Instances and threads are powers of two, and all the cores; together they use no more than the cores. On a GPU, and
    with a backend without threads, only the instances vary: up to `worker_threads`, or the cores.

    Args:
        present: As the version is configured now.
        cores: That Triton may use.
        worker_threads: The setting of that name: most instances.
    """
    if present.intra_op_threads is None:
        most = max(cores, worker_threads)
        found = {Configuration(instance_count=count, intra_op_threads=None) for count in _steps(most)}
    else:
        found = {
            Configuration(instance_count=count, intra_op_threads=threads)
            for count in _steps(cores)
            for threads in _steps(cores)
            if count * threads <= max(1, cores)
        }
    return (present, *sorted(found - {present}))


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The trial to serve with; None where none meets the objective.

    The first, which is the present configuration, unless another has more throughput by more than `TOLERANCE`; among
    such that are equal, the one with the fewest instances, which cost memory, then with the fewest threads.
    """
    good = [trial for trial in trials if _throughput(trial) > 0]
    if not good:
        return None
    enough = max(_throughput(trial) for trial in good) * (1 - TOLERANCE)
    near = [trial for trial in good if _throughput(trial) >= enough]
    if trials[0] in near:
        return trials[0]
    return min(
        near,
        key=lambda trial: (trial.configuration.instance_count, trial.configuration.intra_op_threads or 0),
    )


def _throughput(trial: Trial) -> float:
    """Rows a second within the objective; 0 where that isn't met."""
    if trial.curve is None or trial.curve.chosen is None:
        return 0.0
    return trial.curve.chosen.rows_per_s


def _threads_key(config: Any) -> str | None:
    kinds = {model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) for group in config.instance_group}
    return None if _GPU in kinds else _THREADS.get(config.backend)


def _steps(most: int) -> tuple[int, ...]:
    powers = [2**exponent for exponent in range(max(1, most).bit_length()) if 2**exponent <= most]
    return tuple(sorted({1, *powers, max(1, most)}))
