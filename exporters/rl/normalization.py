"""VecNormalize's statistics, which Stable-Baselines3 keeps outside the agents' zips, in a pickle of its own.

They are read from JSON or `.npz`, never from that pickle. Source: stable_baselines3/common/vec_env/vec_normalize.py,
`_normalize_obs`: clip((observation - mean) / sqrt(var + epsilon), -clip_obs, clip_obs).
"""

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.checkpoints.archive import open_zip_safely
from exporters.checkpoints.npz import read_array
from exporters.errors import ExportError, InvalidConfig, shown
from exporters.rl.bundle import Bundle

MAX_FILE_BYTES = 16 << 20
_KEYS = frozenset({"mean", "var", "epsilon", "clip_obs", "count"})
_EXPECTED = "mean and var, one of each for an observation's component; optionally epsilon and clip_obs"
_REMEDY = (
    "Write them where the agent was trained: json.dump({'mean': env.obs_rms.mean.tolist(), 'var': "
    "env.obs_rms.var.tolist(), 'epsilon': env.epsilon, 'clip_obs': env.clip_obs}, file)."
)
_NOT_ARRAYS = (
    ValueError, KeyError, SyntaxError, EOFError, OSError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationStatistics:
    """How an agent's observations are standardised; mean and var flattened, float64 precision."""

    mean: tuple[float, ...]
    var: tuple[float, ...]
    epsilon: float = 1e-8
    clip_obs: float = 10.0


def read_statistics(source: str | Mapping[str, Any], bundle: Bundle) -> ObservationStatistics:
    """Reads and checks an agent's statistics.

    Args:
        source: a file of the ensemble (`.json`, `.npz`), or the statistics themselves.
        bundle: where the file is.

    Raises:
        InvalidConfig: not such statistics; names the component at fault.
        CorruptCheckpoint, FileTooLarge: the file is missing, damaged or too large.
    """
    if not isinstance(source, str):
        return _parse(source, "its normalization")
    data = bundle.read(source, limit_bytes=MAX_FILE_BYTES)
    if data.startswith(b"\x80"):
        raise InvalidConfig(
            f"{shown(source)} is a pickle, which isn't read.",
            expected=".json or .npz",
            got=shown(source),
            remedy=_REMEDY,
        )
    return _parse(_from_npz(data, source) if data.startswith(b"PK") else _from_json(data, source), source)


def _from_json(data: bytes, name: str) -> Mapping[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfig(
            f"{shown(name)} can't be read as JSON.", expected=_EXPECTED, got=str(error)[:200], remedy=_REMEDY
        ) from error
    if not isinstance(value, dict):
        raise _invalid(name, type(value).__name__)
    return value


def _from_npz(data: bytes, name: str) -> Mapping[str, Any]:
    with open_zip_safely(io.BytesIO(data), len(data)) as archive:
        keys = [entry.removesuffix(".npy") for entry in archive.namelist()]
        _check_keys(keys, name)
        try:
            return {
                key: read_array(archive, f"{key}.npy", limit_bytes=MAX_FILE_BYTES).tolist() for key in keys
            }
        except ExportError:
            raise
        except _NOT_ARRAYS as error:
            raise _invalid(name, f"an array that can't be read: {error!s:.120}") from error


def _check_keys(keys: list[str], name: str) -> None:
    if not {"mean", "var"} <= set(keys) <= _KEYS:
        raise _invalid(name, "the keys " + ", ".join(map(shown, sorted(keys)[:12])))


def _parse(value: Mapping[str, Any], name: str) -> ObservationStatistics:
    _check_keys([str(key) for key in value], name)
    mean, var = (_vector(value[key], f"{name}, {key}") for key in ("mean", "var"))
    if mean.size != var.size:
        raise _invalid(name, f"{mean.size} means, {var.size} variances")
    epsilon = _number(value.get("epsilon", 1e-8), f"{name}, epsilon")
    clip = _number(value.get("clip_obs", 10.0), f"{name}, clip_obs")
    if not (0 <= epsilon <= 1 and clip > 0 and (var >= 0).all() and (var + epsilon > 0).all()):
        raise InvalidConfig(
            f"{shown(name)} has statistics out of range.",
            expected="variances from 0, epsilon from 0 to 1, var + epsilon and clip_obs above 0",
            got=f"smallest variance {var.min():g}, epsilon {epsilon:g}, clip_obs {clip:g}",
            remedy=_REMEDY,
        )
    return ObservationStatistics(
        mean=tuple(mean.tolist()), var=tuple(var.tolist()), epsilon=epsilon, clip_obs=clip
    )


def _vector(value: Any, name: str) -> NDArray[np.float64]:
    """Flattened in C order, as the observation is."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of several lengths
        raise _invalid(name, "lists of several lengths") from error
    if array.dtype.kind not in "fi" or not array.size or array.ndim == 0:
        raise _invalid(name, f"{array.dtype} of shape {list(array.shape)}")
    flat: NDArray[np.float64] = array.astype(np.float64).ravel()
    bad = np.flatnonzero(~np.isfinite(flat) | (np.abs(flat) > 1e30))
    if bad.size:
        raise InvalidConfig(
            f"{shown(name)}: component {bad[0]} isn't a finite number.",
            expected=_EXPECTED,
            got=str(flat[bad[0]]),
        )
    return flat


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidConfig(f"{shown(name)} isn't a finite number.", got=str(value)[:80])
    return float(value)


def _invalid(name: str, got: str) -> InvalidConfig:
    return InvalidConfig(
        f"{shown(name)} isn't VecNormalize's statistics.", expected=_EXPECTED, got=got, remedy=_REMEDY
    )
