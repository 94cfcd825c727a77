"""The OpenAPI description of the routes under /v2. The handlers don't use these models."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"
_PROBLEM_JSON = "application/problem+json"

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"
]  # fmt: skip


class _Model(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class V2Error(_Model):
    """What went wrong."""

    error: str


class V2Server(_Model):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class V2Live(_Model):
    """The process runs."""

    live: bool


class V2Ready(_Model):
    """It can answer."""

    name: str | None = None
    ready: bool


class V2TensorMetadata(_Model):
    """A tensor; the first axis is the batch, -1 is a dynamic one."""

    name: str
    datatype: str
    shape: list[int]


class V2ModelMetadata(_Model):
    """A model."""

    name: str
    versions: list[str] = Field(description="Newest first")
    platform: str
    inputs: list[V2TensorMetadata]
    outputs: list[V2TensorMetadata]


class V2RequestInput(_Model):
    """An input."""

    name: str = Field(min_length=1, max_length=256)
    shape: list[int] = Field(max_length=8, description="With the batch axis first")
    datatype: Datatype
    parameters: dict[str, Any] | None = Field(
        default=None, description="`binary_data_size`: its data follows the JSON, in so many bytes"
    )
    data: list[Any] | None = Field(default=None, description="Row-major, flat or nested")


class V2RequestOutput(_Model):
    """A wanted output."""

    name: str = Field(min_length=1, max_length=256)
    parameters: dict[str, Any] | None = Field(default=None, description="`binary_data`: answer it in binary")


class V2InferRequest(_Model):
    """An inference."""

    inputs: list[V2RequestInput] = Field(min_length=1, max_length=256)
    outputs: list[V2RequestOutput] | None = Field(default=None, description="Left out: all of them")
    id: str | None = Field(default=None, max_length=256, description="Comes back in the answer")
    parameters: dict[str, Any] | None = Field(
        default=None,
        description="`binary_data_output`, `priority` (1 to 5), `timeout` (microseconds), `model_version`, "
        "`routing_key`, `experiment_id`, `covariate`; others are ignored",
    )


class V2ResponseOutput(_Model):
    """An output."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = Field(default=None, description="Flat, row-major; null for NaN and infinities")


class V2InferAnswer(_Model):
    """The outputs."""

    model_name: str
    model_version: str = Field(description="The registered version that answered")
    parameters: dict[str, Any] | None = Field(
        default=None, description="`cached`: true where the version's response cache answered; else left out"
    )
    id: str | None = None
    outputs: list[V2ResponseOutput]


class V2IndexRequest(_Model):
    """Which rows to give."""

    ready: bool | None = Field(default=None, description="The loaded ones only")


class V2IndexRow(_Model):
    """A registered version."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str


class V2RepositoryRequest(_Model):
    """Of a load or an unload."""

    parameters: dict[str, Any] | None = Field(default=None, description="`unload_dependents` changes nothing")


_MODELS = (
    V2Error, V2Server, V2Live, V2Ready, V2ModelMetadata, V2InferRequest, V2InferAnswer, V2IndexRequest, V2IndexRow,
    V2RepositoryRequest,
)  # fmt: skip
_TEXTS = {
    400: "The request can't be read",
    404: "No such model or version",
    409: "The version is in use",
    413: "The body is too large",
    415: "A content encoding other than gzip and deflate",
    422: "A tensor or parameter is wrong or not supported",
    500: "The model failed",
    503: "Overloaded, stopping, or Triton is down; see Retry-After",
    504: "Not in time",
}
_FIND = (404, 422, 503)
_CHANGE = (400, 404, 409, 413, 415, 422, 500, 503, 504)
_INFER = (400, 404, 413, 415, 422, 500, 503, 504)
_NAME = "A type (its latest version answers), or a type, a hyphen, and a version or an alias"


def describe_paths(document: dict[str, Any], prefix: str) -> None:
    """Adds the paths and their schemas to an OpenAPI document, in place."""
    names, definitions = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
    document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    schemas: dict[Any, Any] = {model: names[model, "validation"] for model in _MODELS}
    anything = {"type": "object"}
    index = {"type": "array", "items": schemas[V2IndexRow]}
    server, repository = prefix, f"{prefix}/repository"
    add = _Adder(document.setdefault("paths", {}), schemas[V2Error])
    add("get", server, "v2_server", "The server's name and extensions", schemas[V2Server])
    add("get", f"{server}/health/live", "v2_live", "The process runs", schemas[V2Live])
    add("get", f"{server}/health/ready", "v2_ready", "It can predict", schemas[V2Ready], (503,))
    for path, suffix in (("", ""), ("/versions/{version}", "_version")):
        model = f"{server}/models/{{name}}{path}"
        add(
            "get",
            model,
            f"v2_model{suffix}",
            "A model's versions and tensors",
            schemas[V2ModelMetadata],
            _FIND,
        )
        add(
            "get",
            f"{model}/ready",
            f"v2_model_ready{suffix}",
            "It is loaded",
            schemas[V2Ready],
            (400, *_FIND),
        )
        add("get", f"{model}/config", f"v2_config{suffix}", "Its configuration, as Triton's", anything, _FIND)
        add(
            "post", f"{model}/infer", f"v2_infer{suffix}", "Run raw tensors through a model", schemas[V2InferAnswer],
            _INFER, schemas[V2InferRequest], is_required=True,
        )  # fmt: skip
    body = schemas[V2RepositoryRequest]
    add(
        "post", f"{repository}/index", "v2_index", "All registered versions, with their state", index,
        (400, 413, 415, 422), schemas[V2IndexRequest],
    )  # fmt: skip
    model = f"{repository}/models/{{name}}"
    add("post", f"{model}/load", "v2_load", "Load a registered version", anything, _CHANGE, body)
    add("post", f"{model}/unload", "v2_unload", "Unload a version", anything, _CHANGE, body)


class _Adder:
    """Writes operations."""

    def __init__(self, paths: dict[str, Any], error: dict[str, Any]) -> None:
        self._paths = paths
        self._error = error

    def __call__(
        self,
        method: str,
        path: str,
        name: str,
        summary: str,
        answer: dict[str, Any],
        errors: tuple[int, ...] = (),
        body: dict[str, Any] | None = None,
        *,
        is_required: bool = False,
    ) -> None:
        """Adds one."""
        content: dict[str, Any] = {"application/json": {"schema": answer}}
        if is_required:
            content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        operation: dict[str, Any] = {
            "tags": ["open inference protocol"],
            "summary": summary,
            "operationId": name,
            "responses": {
                "200": {"description": "The answer", "content": content},
                **{str(status): self._problem(status) for status in errors},
            },
        }
        if parameters := [part for part in ("name", "version") if f"{{{part}}}" in path]:
            operation["parameters"] = [_path_parameter(part) for part in parameters]
        if body is not None:
            operation["requestBody"] = {
                "required": is_required,
                "content": {"application/json": {"schema": body}},
            }
        self._paths.setdefault(path, {})[method] = operation

    def _problem(self, status: int) -> dict[str, Any]:
        content = {"application/json": {"schema": self._error}}
        if status == 413:
            # An announced length is refused before any route is known.
            content[_PROBLEM_JSON] = {"schema": {"type": "object"}}
        return {"description": _TEXTS[status], "content": content}


def _path_parameter(name: str) -> dict[str, Any]:
    description = _NAME if name == "name" else "A version or an alias"
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "minLength": 1},
    }
