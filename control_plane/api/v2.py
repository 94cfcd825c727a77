"""Open Inference Protocol v2 under /v2: health, metadata, inference, and Triton's model repository extension.

Plain Starlette routes: errors have the protocol's own shape, and `describe` puts the routes into the OpenAPI document.

Source: https://github.com/kserve/open-inference-protocol (`specification/protocol/inference_rest.md`) and Triton's
`docs/protocol/extension_model_repository.md`, `extension_model_configuration.md`.
"""

from http import HTTPStatus
from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from control_plane import __version__
from control_plane.api.resources import resources_of
from control_plane.api.v2_body import read_body
from control_plane.api.v2_docs import describe_paths
from control_plane.api.v2_errors import Handler, NoSuchRoute, error_response, protocol_errors
from control_plane.api.v2_infer import infer
from control_plane.errors import InvalidInput, MalformedRequest, NotFound
from control_plane.inference.open_inference_names import find_fresh_model
from control_plane.models.card import CardTensor, ModelCard
from control_plane.models.publisher import LoadRequest
from control_plane.models.registry import ModelVersion

NAME = "model-serving"
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
)
_PLATFORMS = {"onnx": "onnxruntime_onnx", "torchscript": "pytorch_libtorch"}
_BACKENDS = {"onnx": "onnxruntime", "torchscript": "pytorch"}
_STATES = {"ready": "READY", "loading": "LOADING", "unloading": "UNLOADING"}


class _RepositoryBody(msgspec.Struct, kw_only=True):
    ready: bool | None = None
    parameters: dict[str, Any] | None = None


_repository_decoder = msgspec.json.Decoder(_RepositoryBody)


@protocol_errors
async def server_metadata(request: Request) -> Response:
    """The server's name, release, and the extensions that it has."""
    del request
    return _json({"name": NAME, "version": __version__, "extensions": EXTENSIONS})


@protocol_errors
async def server_live(request: Request) -> Response:
    """The process runs its event loop."""
    del request
    return _json({"live": True})


@protocol_errors
async def server_ready(request: Request) -> Response:
    """Whether predictions can be answered."""
    resources = resources_of(request)
    if resources.draining.started:
        return error_response(HTTPStatus.SERVICE_UNAVAILABLE, "The server is stopping.")
    if not await resources.triton.is_live():
        return error_response(HTTPStatus.SERVICE_UNAVAILABLE, "Triton doesn't answer.")
    return _json({"ready": True})


@protocol_errors
async def model_metadata(request: Request) -> Response:
    """A model's versions and tensors."""
    model = await _model_of(request)
    name = request.path_params["name"]
    registry = resources_of(request).registry
    is_type = name == model.model_type and "version" not in request.path_params
    versions = registry.versions(name) if is_type else (model,)
    return _json(
        {
            "name": name,
            "versions": [one.version for one in versions],
            "platform": _PLATFORMS.get(model.card.format, ""),
            "inputs": [_tensor(tensor) for tensor in model.card.inputs],
            "outputs": [_tensor(tensor) for tensor in model.card.outputs],
        }
    )


@protocol_errors
async def model_ready(request: Request) -> Response:
    """Whether a model is loaded. One that isn't is loaded by the first inference that asks for it."""
    model = await _model_of(request)
    states = await resources_of(request).cache.states([model.key])
    if states[model.key].state != "ready":
        return error_response(
            HTTPStatus.BAD_REQUEST,
            f"{model.key} is {states[model.key].state}; the first inference that asks for it loads it.",
        )
    return _json({"name": request.path_params["name"], "ready": True})


@protocol_errors
async def model_config(request: Request) -> Response:
    """What Triton's own tools read of a model's configuration."""
    return _json(_configuration(request.path_params["name"], (await _model_of(request)).card))


@protocol_errors
async def repository_index(request: Request) -> Response:
    """Every registered version by its name in Triton, with its state; with `ready`, the loaded ones only."""
    body = await _repository_body(request)
    resources = resources_of(request)
    registry = resources.registry
    models = [model for name in registry.model_types() for model in registry.versions(name)]
    states = await resources.cache.states([model.key for model in models])
    rows = [_index_row(model, states[model.key].state) for model in models]
    return _json([row for row in rows if not body.ready or row["state"] == "READY"])


@protocol_errors
async def load_model(request: Request) -> Response:
    """Loads a registered version: nothing to do where it is loaded already."""
    body = await _repository_body(request)
    given = [key for key in body.parameters or {} if key == "config" or key.startswith("file:")]
    if given:
        raise InvalidInput(
            "A load can't bring a configuration or files.",
            expected="a registered version",
            got=", ".join(key[:80] for key in given[:10]),
            remedy="POST /api/v1/models/load publishes a file as a version, and loads it.",
        )
    resources = resources_of(request)
    try:
        model = await _model_of(request)
    except NotFound:
        # It may have been put there a moment ago.
        await resources.registry.refresh()
        model = await _model_of(request)
    await resources.operations.load(LoadRequest(model_type=model.model_type, version=model.version))
    return _json({})


@protocol_errors
async def unload_model(request: Request) -> Response:
    """Unloads a version once its requests in flight are done. It stays registered."""
    await _repository_body(request)
    model = await _model_of(request)
    await resources_of(request).operations.unload(model.model_type, model.version)
    return _json({})


def routes(prefix: str = "/v2") -> list[Route]:
    """The routes, for `app.router.routes`: inference before all others, and last whatever else is under the prefix."""
    model = f"{prefix}/models/{{name}}"
    version = f"{model}/versions/{{version}}"
    found: list[tuple[str, str, Handler]] = [
        ("POST", f"{model}/infer", infer),
        ("POST", f"{version}/infer", infer),
        ("GET", prefix, server_metadata),
        ("GET", f"{prefix}/health/live", server_live),
        ("GET", f"{prefix}/health/ready", server_ready),
        *(
            ("GET", path + end, handler)
            for path in (model, version)
            for end, handler in (("", model_metadata), ("/ready", model_ready), ("/config", model_config))
        ),
        ("POST", f"{prefix}/repository/index", repository_index),
        ("POST", f"{prefix}/repository/models/{{name}}/load", load_model),
        ("POST", f"{prefix}/repository/models/{{name}}/unload", unload_model),
    ]
    made = [
        Route(path, handler, methods=[method], include_in_schema=False) for method, path, handler in found
    ]
    return [*made, Route(f"{prefix}/{{path:path}}", NoSuchRoute(made), include_in_schema=False)]


def describe(document: dict[str, Any], prefix: str = "/v2") -> None:
    """Adds the routes to an OpenAPI document, in place."""
    describe_paths(document, prefix)


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


async def _model_of(request: Request) -> ModelVersion:
    parameters = request.path_params
    registry = resources_of(request).registry
    return await find_fresh_model(registry, parameters["name"], parameters.get("version"))


async def _repository_body(request: Request) -> _RepositoryBody:
    text = await read_body(request, max_bytes=resources_of(request).settings.limits.max_body_bytes)
    if not text.strip():
        return _RepositoryBody()
    try:
        return _repository_decoder.decode(text)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"The body is wrong: {error}.", remedy="Leave it empty, or send a JSON object."
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(
            "The body is not JSON.", remedy="Leave it empty, or send a JSON object."
        ) from error


def _tensor(tensor: CardTensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, *tensor.shape]}


def _index_row(model: ModelVersion, state: str) -> dict[str, str]:
    shown = _STATES.get(state, "UNAVAILABLE")
    reason = "unloaded; the first inference that asks for it loads it" if shown == "UNAVAILABLE" else ""
    return {"name": model.key, "version": model.version, "state": shown, "reason": reason}


def _configuration(name: str, card: ModelCard) -> dict[str, Any]:
    return {
        "name": name,
        "platform": _PLATFORMS.get(card.format, ""),
        "backend": _BACKENDS.get(card.format, ""),
        "max_batch_size": card.max_batch_size,
        "input": [_configured(tensor) for tensor in card.inputs],
        "output": [_configured(tensor) for tensor in card.outputs],
        "instance_group": [{"count": card.instance_count, "kind": f"KIND_{card.device.upper()}"}],
    }


def _configured(tensor: CardTensor) -> dict[str, Any]:
    datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{datatype}", "dims": tensor.shape}
