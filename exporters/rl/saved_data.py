"""What the `data` of a Stable-Baselines3 zip says in plain JSON. Its pickles stay the base64 text that they are.

Stable-Baselines3 pickles what JSON can't hold, and beside the pickle writes the object's type and attributes as text
for people: the spaces' shapes and bounds, the activation's class. That text is all that is read here.
Source: stable_baselines3/common/save_util.py, `data_to_json`.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporters.errors import CorruptCheckpoint, UnsupportedCheckpoint, shown

MAX_DATA_BYTES = 32 << 20
_TYPE = ":type:"
_CLASS = re.compile(r"<class '([\w.]{1,200})'>")
_NUMBER = re.compile(r"[-+]?(?:inf|nan|\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?)", re.IGNORECASE)
_MAX_TEXT = 1 << 20
_FLATTEN = "FlattenExtractor"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSpace:
    """A space as the text describes it: its class, shape, and for a Box its bounds, flattened; None: not said."""

    kind: str
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    count: int | None = None
    start: int = 0
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedData:
    """The facts of an agent's `data`. None: not said in plain text.

    `activation`: the class's name, e.g. `Tanh`. `keys`: the names of all attributes, which tell algorithms apart.
    """

    keys: frozenset[str]
    policy_module: str | None
    has_policy_kwargs: bool
    activation: str | None
    observation_space: SavedSpace | None
    action_space: SavedSpace | None
    target_noise: float | None


def read_saved_data(data: bytes) -> SavedData:
    """Reads the facts, and refuses by name what the networks' tensors alone wouldn't show.

    Raises:
        CorruptCheckpoint: not a JSON object.
        UnsupportedCheckpoint: gSDE, or a features extractor other than flattening.
    """
    try:
        values = json.loads(data)  # not msgspec: Stable-Baselines3 writes NaN and Infinity as they are
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint("data can't be read as JSON.", got=str(error)[:200]) from error
    if not isinstance(values, dict):
        raise CorruptCheckpoint("data isn't a JSON object.", got=type(values).__name__)
    kwargs = values.get("policy_kwargs")
    kwargs = kwargs if isinstance(kwargs, dict) else None
    if values.get("use_sde") is True or (kwargs or {}).get("use_sde") is True:
        raise UnsupportedCheckpoint(
            "The policy uses generalised state-dependent exploration (gSDE), which isn't served.",
            expected="use_sde=False",
            got="use_sde=True",
            remedy="Train without gSDE.",
        )
    extractor = _class_name((kwargs or {}).get("features_extractor_class"))
    if extractor is not None and extractor != _FLATTEN:
        raise UnsupportedCheckpoint(
            f"The policy has a features extractor of its own, {shown(extractor)}.",
            expected=f"MlpPolicy with {_FLATTEN}",
            got=shown(extractor),
            remedy="Train an MlpPolicy on the extracted features.",
        )
    policy = values.get("policy_class")
    module = policy.get("__module__") if isinstance(policy, dict) else None
    noise = values.get("target_policy_noise")
    return SavedData(
        keys=frozenset(values),
        policy_module=module if isinstance(module, str) else None,
        has_policy_kwargs=kwargs is not None,
        activation=_activation(kwargs),
        observation_space=_space(values.get("observation_space")),
        action_space=_space(values.get("action_space")),
        target_noise=float(noise) if isinstance(noise, int | float) and not isinstance(noise, bool) else None,
    )


def _activation(kwargs: Mapping[str, Any] | None) -> str | None:
    if kwargs is None or "activation_fn" not in kwargs:
        return None
    stated = kwargs["activation_fn"]
    return _class_name(stated) or str(stated)[:200]


def _class_name(value: Any) -> str | None:
    """The last part of a class's text form, or of the type beside a pickle."""
    if isinstance(value, dict):
        value = value.get(_TYPE)
    if not isinstance(value, str):
        return None
    match = _CLASS.fullmatch(value)
    return match.group(1).rpartition(".")[2] if match else value[:200]


def _space(value: Any) -> SavedSpace | None:
    kind = _class_name(value)
    if not isinstance(value, dict) or kind is None:
        return None
    shape = value.get("_shape")
    sizes = (
        tuple(shape)
        if isinstance(shape, list) and all(type(size) is int and 0 < size < 1 << 24 for size in shape)
        else None
    )
    return SavedSpace(
        kind=kind,
        dtype=str(value.get("dtype", ""))[:20],
        shape=sizes,
        count=_integer(value.get("n")),
        start=_integer(value.get("start")) or 0,
        low=_numbers(value.get("low"), sizes),
        high=_numbers(value.get("high"), sizes),
    )


def _integer(value: Any) -> int | None:
    if type(value) is int:
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value) else None


def _numbers(value: Any, shape: tuple[int, ...] | None) -> tuple[float, ...] | None:
    """The numbers of an array's text form, in C order; None where it is shortened or isn't of that shape.

    numpy prints eight digits behind the point: a bound is right to 5e-9, or to its ninth digit.
    """
    if not isinstance(value, str) or shape is None or len(value) > _MAX_TEXT:
        return None
    if re.fullmatch(r"[-+\d.einfa\s\[\]]*", value) is None or "..." in value:
        return None
    found = [float(text) for text in _NUMBER.findall(value)]
    return tuple(found) if len(found) == math.prod(shape) else None
