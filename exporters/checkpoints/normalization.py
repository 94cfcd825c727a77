"""Where a model's per-channel mean and scale come from: the request, a file beside the checkpoint, its configuration.

The first that is there counts; sources aren't mixed. Whether the length fits the model is the builder's to say.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from exporters.errors import InvalidConfig
from exporters.spec import Normalization

MAX_FILE_BYTES = 4 << 20
_EXPECTED = '{"mean": [numbers], "scale": [numbers above 0]}, one of each for a channel'


def file_beside(checkpoint: Path) -> Path:
    """`model.normalization.json` beside `model.pth`."""
    return checkpoint.with_name(f"{checkpoint.stem}.normalization.json")


def find_normalization(
    checkpoint: Path, *, request: Mapping[str, Any] | None, config: Mapping[str, Any] | None
) -> Normalization | None:
    """Finds and checks a model's normalisation.

    Args:
        checkpoint: the checkpoint's path; the file beside it is looked for.
        request: `normalization` of the request.
        config: the checkpoint's configuration; its `normalization` is the last source.

    Raises:
        InvalidConfig: the source that counts isn't a normalisation.
    """
    if request is not None:
        return parse_normalization(request, source="the request's normalization")
    beside = file_beside(checkpoint)
    if beside.is_file():
        return read_normalization(beside)
    recorded = (config or {}).get("normalization")
    if recorded is not None:
        return parse_normalization(recorded, source="the checkpoint's config.normalization")
    return None


def read_normalization(path: Path) -> Normalization:
    """Reads a normalisation from a JSON file.

    Raises:
        InvalidConfig: unreadable, not JSON, or not a normalisation.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidConfig(f"{path.name} is too large to be a normalisation.", expected=_EXPECTED)
        value = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfig(
            f"{path.name} can't be read as JSON.", expected=_EXPECTED, got=str(error)[:200]
        ) from error
    return parse_normalization(value, source=path.name)


def parse_normalization(value: Any, *, source: str) -> Normalization:
    """Checks a decoded normalisation: two equally long lists of finite numbers, the scale above 0.

    Raises:
        InvalidConfig: anything else; names `source`, and the channel at fault.
    """
    if not isinstance(value, Mapping) or not {"mean", "scale"} <= value.keys():
        got = f"the keys {sorted(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
        raise InvalidConfig(f"{source} isn't a normalisation.", expected=_EXPECTED, got=got[:200])
    mean, scale = (_numbers(value[name], f"{source}, {name}") for name in ("mean", "scale"))
    if len(mean) != len(scale):
        raise InvalidConfig(
            f"{source}: mean and scale differ in length.",
            expected=_EXPECTED,
            got=f"{len(mean)} means, {len(scale)} scales",
        )
    for channel, number in enumerate(scale):
        if number <= 0:
            raise InvalidConfig(
                f"{source}: the scale of channel {channel} isn't above 0.",
                expected="a standard deviation",
                got=str(number),
                remedy="Use 1.0 for a channel that doesn't vary.",
            )
    return Normalization(mean=mean, scale=scale)


def _numbers(value: Any, source: str) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise InvalidConfig(
            f"{source} isn't a list of numbers.", expected=_EXPECTED, got=type(value).__name__
        )
    for channel, number in enumerate(value):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise InvalidConfig(
                f"{source}: channel {channel} isn't a finite number.",
                expected=_EXPECTED,
                got=str(number)[:80],
            )
    return tuple(float(number) for number in value)
