"""From a path to a checkpoint's tensors, configuration and metrics, without running anything of the file's.

Reading needs numpy only; torch is imported by whoever turns the arrays into its tensors.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from exporters.checkpoints.archive import (
    MAX_PICKLE_BYTES,
    BoundedStream,
    Container,
    LegacyContainer,
    ZipContainer,
    open_zip_safely,
)
from exporters.checkpoints.identify import (
    DEFAULT_MAX_BYTES,
    FileKind,
    identify,
    identify_stream,
    open_regular,
)
from exporters.checkpoints.pickle_data import interpret
from exporters.checkpoints.values import ITEM_BYTES, StorageRef, TensorRef, array_of, plain
from exporters.errors import CorruptCheckpoint, UnsupportedCheckpoint, shown

STATE_KEYS = ("model_state_dict", "state_dict")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
_SMALL_BYTES = 4 << 20

_WANTED = "a dict with 'model_state_dict' (or 'state_dict') and 'config'"
_SAVE_SO = (
    "Save it as torch.save({'model_state_dict': model.state_dict(), "
    "'config': dataclasses.asdict(config)}, path)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds. `config` is None where it has none (a bare state dict)."""

    file_name: str
    sha256: str
    size_bytes: int
    config: Mapping[str, Any] | None
    metrics: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]
    _container: Container
    _max_bytes: int

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Reads the tensors of the state: contiguous arrays, bfloat16 widened to float32.

        Raises:
            CorruptCheckpoint: a tensor's data is damaged, or together they are larger than the file may be.
            UnsupportedCheckpoint: a tensor has NaN or infinite values.
        """
        total = sum(ref.elements * ITEM_BYTES[ref.storage.dtype] for ref in self.tensors.values())
        if total > self._max_bytes:
            raise CorruptCheckpoint(
                "The checkpoint's tensors are larger than the file: many are views of the same data.",
                expected=f"at most {self._max_bytes:,} bytes in all",
                got=f"{total:,} bytes",
            )
        arrays: dict[str, NDArray[Any]] = {}
        storage_of: tuple[StorageRef | None, bytes] = (None, b"")  # each is read once: tensors may share one
        for name, ref in sorted(self.tensors.items(), key=_by_storage):
            if storage_of[0] != ref.storage:
                storage_of = (ref.storage, self._container.storage(ref.storage))
            array = array_of(ref, storage_of[1])
            if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
                raise UnsupportedCheckpoint(
                    f"The tensor {shown(name)} has NaN or infinite values.",
                    expected="finite weights",
                    got=f"{int((~np.isfinite(array)).sum()):,} of {array.size:,} values aren't finite",
                    remedy="Take a checkpoint from before the training diverged.",
                )
            arrays[name] = array
        return {name: arrays[name] for name in self.tensors}


def _by_storage(item: tuple[str, TensorRef]) -> tuple[str, str, int]:
    storage = item[1].storage
    return storage.key, storage.dtype, storage.elements


@contextmanager
def open_checkpoint(path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Iterator[Checkpoint]:
    """Reads a checkpoint's structure; its tensors' data is read while the context is open.

    Args:
        path: `.pth` or `.pt` file in torch's zip or legacy format.
        max_bytes: limit on the file's size.

    Raises:
        UnsafeCheckpoint: the pickle names a global that isn't on the list.
        CorruptCheckpoint: damaged, truncated, empty, or not a checkpoint at all.
        UnsupportedCheckpoint: readable, but without a state dict of tensors.
        FileTooLarge: beyond `max_bytes`.
    """
    kind = identify(path, max_bytes=max_bytes)
    stream, size_bytes = open_regular(path, max_bytes=max_bytes)
    with stream:
        before = fingerprint(stream)
        container = _open_container(stream, size_bytes, kind, path.name)
        checkpoint = _structure(container, path.name, stream_sha256(stream), size_bytes, max_bytes)
        yield checkpoint
        if fingerprint(stream) != before:
            raise CorruptCheckpoint(
                f"{path.name} changed while it was being read.", remedy="Export again once it is written."
            )


def read_state(data: bytes, *, name: str) -> dict[str, NDArray[Any]]:
    """Reads a state dict that was an entry of another archive.

    Args:
        data: the bytes of a file in torch's zip or legacy format.
        name: what errors call it.

    Returns:
        Contiguous arrays by the tensors' names.

    Raises:
        UnsafeCheckpoint, CorruptCheckpoint, UnsupportedCheckpoint: as `open_checkpoint` and `Checkpoint.arrays`.
    """
    if not data:
        raise CorruptCheckpoint(f"{name} is empty.", remedy="Copy or save it again.")
    stream = io.BytesIO(data)
    container = _open_container(stream, len(data), identify_stream(stream), name)
    return _structure(container, name, "", len(data), len(data)).arrays()


def fingerprint(stream: BinaryIO) -> tuple[int, int]:
    """An open file's size in bytes and its time of change in nanoseconds: what tells that it is another now."""
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


def stream_sha256(stream: BinaryIO) -> str:
    """SHA-256 of an open file from its beginning, hex."""
    digest = hashlib.sha256()
    stream.seek(0)
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _open_container(stream: BinaryIO, size_bytes: int, kind: FileKind, name: str) -> Container:
    match kind:
        case FileKind.TORCH_ZIP:
            return ZipContainer(open_zip_safely(stream, size_bytes), size_bytes)
        case FileKind.TORCH_LEGACY:
            return LegacyContainer(stream, size_bytes)
        case FileKind.PICKLE:
            _judge_pickle(stream, name)
    if kind is FileKind.OTHER:
        raise CorruptCheckpoint(
            f"{name} isn't a model file.",
            expected="a torch checkpoint (.pth, .pt)",
            got=f"a file that begins with {_head(stream)!r}",
            remedy=_SAVE_SO,
        )
    raise UnsupportedCheckpoint(
        f"{name} is {kind}, not a torch checkpoint.",
        expected="a torch checkpoint (.pth, .pt)",
        got=str(kind),
        remedy={
            FileKind.TORCHSCRIPT: "Publish it as it is: python -m exporters ready-made TYPE FILE.",
            FileKind.ONNX: "Publish it as it is: python -m exporters ready-made TYPE FILE.",
            FileKind.TAR: "Load and save it again with a current torch.",
        }.get(kind, _SAVE_SO),
    )


def _judge_pickle(stream: BinaryIO, name: str) -> None:
    """A pickle outside torch's containers: refused in any case, and as unsafe where it is."""
    try:
        interpret(BoundedStream(stream, MAX_PICKLE_BYTES))
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(
            f"{name} isn't a torch checkpoint.",
            expected="a file that torch.save wrote",
            got=f"a file that begins with {_head(stream)!r}",
            remedy=_SAVE_SO,
        ) from error


def _head(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read(12)


def _structure(
    container: Container, file_name: str, sha256: str, size_bytes: int, max_bytes: int
) -> Checkpoint:
    root = container.root
    if type(root) is not dict or not root:
        raise UnsupportedCheckpoint(
            "The checkpoint doesn't hold a dict.", expected=_WANTED, got=_kind_of(root), remedy=_SAVE_SO
        )
    state_key = next((key for key in STATE_KEYS if key in root), None)
    if state_key is None and not all(isinstance(value, TensorRef) for value in root.values()):
        raise UnsupportedCheckpoint(
            "The checkpoint has no state dict.",
            expected=_WANTED,
            got="the keys " + ", ".join(repr(key)[:40] for key in list(root)[:12]),
            remedy=_SAVE_SO,
        )
    small = _small_tensor(container)
    config: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = {}
    if state_key is not None:
        if root.get("config") is not None:
            config = _mapping(plain(root["config"], where="config", tensor=small), "config")
        if isinstance(root.get("metrics"), dict):
            metrics = _finite(plain(root["metrics"], where="metrics", tensor=small))
    return Checkpoint(
        file_name=file_name,
        sha256=sha256,
        size_bytes=size_bytes,
        config=config,
        metrics=metrics,
        tensors=_state(root if state_key is None else root[state_key], state_key),
        _container=container,
        _max_bytes=max_bytes,
    )


def _state(state: Any, key: str | None) -> dict[str, TensorRef]:
    where = f"'{key}'" if key else "the file"
    if type(state) is not dict or not state:
        raise UnsupportedCheckpoint(
            f"The checkpoint's {where} isn't a state dict.",
            expected="names and tensors, as model.state_dict() gives them",
            got=_kind_of(state),
            remedy=_SAVE_SO,
        )
    for name, value in state.items():
        if type(name) is not str or not isinstance(value, TensorRef):
            raise UnsupportedCheckpoint(
                f"The entry {shown(str(name))} in {where} isn't a tensor.",
                expected="names and tensors, as model.state_dict() gives them",
                got=_kind_of(value),
                remedy=_SAVE_SO,
            )
    tensors: dict[str, TensorRef] = state
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): ref for name, ref in tensors.items()}
    return tensors


def _small_tensor(container: Container) -> Any:
    def read(ref: TensorRef) -> NDArray[Any]:
        if ref.elements * ITEM_BYTES[ref.storage.dtype] > _SMALL_BYTES:
            raise UnsupportedCheckpoint(
                "The checkpoint's configuration holds a large tensor.", remedy=_SAVE_SO
            )
        return array_of(ref, container.storage(ref.storage))

    return read


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UnsupportedCheckpoint(
            f"The checkpoint's '{key}' is neither a dict nor a configuration object.",
            got=_kind_of(value),
            remedy=_SAVE_SO,
        )
    return value


def _finite(value: Any) -> Any:
    """Metrics may hold NaN (a loss that was never computed); JSON can't, so it becomes None."""
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return value


def _kind_of(value: Any) -> str:
    if isinstance(value, TensorRef):
        return f"a tensor of shape {list(value.shape)}"
    return f"a value of type {type(value).__name__}"
