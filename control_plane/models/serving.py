"""How a version is served: what may be written into the `serving` section of its card, and what to say about it.

Pure apart from what the registry has in memory; `operations.py` holds the locks and writes.
"""

from dataclasses import dataclass

import msgspec

from control_plane.errors import FieldError, InvalidInput
from control_plane.models.card import CardTensor, ModelCard, ServingOptions
from control_plane.models.registry import ModelRegistry, ModelVersion

_LENGTH = "sequence_length"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingState:
    """A version with the options that hold for it, and what is amiss with them."""

    model: ModelVersion
    serving: ServingOptions
    warnings: tuple[str, ...]


def checked_serving(serving: ServingOptions, model: ModelVersion, registry: ModelRegistry) -> ServingOptions:
    """The options as they may be written: the fallback under its registered name.

    Raises:
        InvalidInput: the fallback isn't another registered version of the type, takes other inputs, or leads back.
    """
    if serving.fallback is None:
        return serving
    fallback = registry.find(model.model_type, serving.fallback)
    if fallback is None:
        others = [one.version for one in registry.versions(model.model_type) if one is not model]
        raise _wrong_fallback(
            serving.fallback,
            "is no registered version",
            f"one of: {', '.join(others) or 'no other version is registered'} (no alias, and not latest)",
        )
    if fallback is model:
        raise _wrong_fallback(serving.fallback, "is the version itself", "another version")
    if (fault := misfit(model.card, fallback.card)) is not None:
        raise _wrong_fallback(serving.fallback, fault, "a version that takes the same inputs")
    chain = fallback_chain(fallback, registry)
    if model.version in chain:
        raise _wrong_fallback(
            serving.fallback,
            f"falls back to {model.version} again ({' → '.join(chain)})",
            "no way back",
        )
    return msgspec.structs.replace(serving, fallback=fallback.version)


def state_of(model: ModelVersion, registry: ModelRegistry) -> ServingState:
    """The version's options, with warnings about those that can't do what they say."""
    serving = model.card.serving
    warnings = []
    if serving.fallback is not None:
        fallback = registry.find(model.model_type, serving.fallback)
        fault = "isn't registered any more" if fallback is None else misfit(model.card, fallback.card)
        if fault is not None:
            warnings.append(f"The fallback {serving.fallback} {fault}: it can't answer for this version.")
    responses = serving.response_cache
    if (
        serving.on_overload == "degrade"
        and serving.fallback is None
        and (responses is None or responses.stale_for_s == 0)
    ):
        warnings.append(
            "on_overload is degrade, but there is neither a fallback nor a response_cache with stale_for_s: under "
            "overload requests are refused, as with reject."
        )
    return ServingState(model=model, serving=serving, warnings=tuple(warnings))


def users_of(model: ModelVersion, registry: ModelRegistry) -> tuple[str, ...]:
    """The versions whose fallback is this one."""
    return tuple(
        other.version
        for other in registry.versions(model.model_type)
        if other.card.serving.fallback is not None
        and registry.find(model.model_type, other.card.serving.fallback) is model
    )


def fallback_chain(first: ModelVersion, registry: ModelRegistry) -> list[str]:
    """The versions that answer for each other, from `first` on; ends before one comes again."""
    chain: list[str] = []
    current: ModelVersion | None = first
    while current is not None and current.version not in chain:
        chain.append(current.version)
        name = current.card.serving.fallback
        current = registry.find(current.model_type, name) if name is not None else None
    return chain


def misfit(card: ModelCard, fallback: ModelCard) -> str | None:
    """Why what one version takes, the other doesn't; None where it does."""
    wanted = {tensor.name: tensor for tensor in card.inputs}
    offered = {tensor.name: tensor for tensor in fallback.inputs}
    if wanted.keys() != offered.keys():
        return f"takes the inputs {', '.join(sorted(offered))} instead of {', '.join(sorted(wanted))}"
    for name, tensor in wanted.items():
        if not _fits(tensor, offered[name]):
            return f"takes {name} as {_form(offered[name])} instead of {_form(tensor)}"
    length, longest = card.config.get(_LENGTH), fallback.config.get(_LENGTH)
    if isinstance(length, int) and isinstance(longest, int) and longest < length:
        return f"takes at most {longest} steps, and this version {length}"
    return None


def _fits(wanted: CardTensor, offered: CardTensor) -> bool:
    return (
        wanted.datatype == offered.datatype
        and len(wanted.shape) == len(offered.shape)
        and all(theirs in (-1, ours) for ours, theirs in zip(wanted.shape, offered.shape, strict=True))
    )


def _form(tensor: CardTensor) -> str:
    return f"{tensor.datatype} {list(tensor.shape)}"


def _wrong_fallback(name: str, fault: str, expected: str) -> InvalidInput:
    got = repr(name)[:100]
    return InvalidInput(
        f"The fallback {got} {fault}.",
        expected=expected,
        got=got,
        remedy="Name a cheaper version of the same type that takes the same data.",
        errors=[FieldError(path="fallback", message=fault)],
    )
