"""Open Inference Protocol (v2): which version a model name of the protocol stands for."""

from contextlib import suppress

from control_plane.errors import InvalidInput, UnknownModel, UnknownVersion
from control_plane.models.registry import ModelRegistry, ModelVersion
from control_plane.models.versions import LATEST

TRITON_VERSION = "1"
"""What Triton itself calls the one version of each of its models."""


def find_model(registry: ModelRegistry, name: str, version: str | None = None) -> ModelVersion:
    """The version that a model name of the protocol stands for.

    Args:
        registry: Which versions exist.
        name: A type (`latest` answers), or a type, a hyphen, and a version or alias: Triton's name of a version is one.
        version: A version or alias of the type; with a name that has one already, that one or Triton's own `1`.

    Raises:
        UnknownModel, UnknownVersion: there is none.
        InvalidInput: the name and `version` stand for different versions.
        RedisUnavailable: it may be an alias, and the aliases were never read.
    """
    exact = registry.get(name)
    type_name, hyphen, named = name.partition("-")
    if exact is None and not hyphen:
        return registry.resolve(name, version or LATEST)
    if exact is None and not registry.versions(type_name):
        raise UnknownModel(
            f"No model {name!r} is registered.",
            expected=f"one of: {', '.join(registry.model_types()) or 'none yet'}; or <type>-<version>",
            got=name,
            remedy="POST /v2/repository/index lists the models.",
        )
    model = exact or registry.resolve(type_name, named)
    if version is None or version == TRITON_VERSION or registry.resolve(model.model_type, version) is model:
        return model
    raise InvalidInput(
        f"The model {name!r} is one version already.",
        expected=f"no version, {TRITON_VERSION}, or {model.version}",
        got=version,
        remedy=f"Ask for the model {model.model_type!r} with that version.",
    )


async def find_fresh_model(registry: ModelRegistry, name: str, version: str | None = None) -> ModelVersion:
    """As `find_model`, but has the registry look again, as `ModelRegistry.resolve_fresh` does, before it says no.

    Raises:
        As `find_model`.
    """
    try:
        return find_model(registry, name, version)
    except (UnknownModel, UnknownVersion):
        type_name, _, named = name.partition("-")
        with suppress(UnknownModel, UnknownVersion):
            await registry.resolve_fresh(type_name, named or version or LATEST)
    return find_model(registry, name, version)


def type_of(name: str) -> str:
    """The model type in a model name of the protocol."""
    return name.partition("-")[0]
