"""The Python-based backends against ONNX Runtime and PyTorch themselves."""

import asyncio
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import InferInput, InferRequestedOutput, model_config_pb2
from tritonclient.grpc import aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from control_plane.embedded.triton import TritonServer

_CONFIG_TYPES = {
    "FP32": model_config_pb2.TYPE_FP32,
    "FP64": model_config_pb2.TYPE_FP64,
    "FP16": model_config_pb2.TYPE_FP16,
    "INT64": model_config_pb2.TYPE_INT64,
    "BOOL": model_config_pb2.TYPE_BOOL,
    "BYTES": model_config_pb2.TYPE_STRING,
}
Tensors = Mapping[str, tuple[str, list[int]]]


@pytest.fixture
async def client(triton_server: TritonServer) -> AsyncIterator[triton_aio.InferenceServerClient]:
    """A gRPC client of the session's Triton."""
    async with triton_aio.InferenceServerClient(triton_server.grpc_url) as connected:
        yield connected


class _Published:
    """Writes models into the repository, loads them, and unloads them at the end."""

    def __init__(self, client: triton_aio.InferenceServerClient, repository: Path) -> None:
        self._client = client
        self._repository = repository
        self.names: list[str] = []

    async def __call__(
        self,
        write: Callable[[Path], object],
        inputs: Tensors,
        outputs: Tensors,
        *,
        backend: str = "onnxruntime",
        file: str | None = None,
        max_batch_size: int = 64,
        parameters: Mapping[str, str] | None = None,
        change: Callable[[Any], object] = lambda config: config,
    ) -> str:
        name = f"backend-{uuid.uuid4().hex[:8]}"
        config = model_config_pb2.ModelConfig(name=name, backend=backend, max_batch_size=max_batch_size)
        for side, tensors in ((config.input, inputs), (config.output, outputs)):
            for tensor, (datatype, dims) in tensors.items():
                side.add(name=tensor, data_type=_CONFIG_TYPES[datatype], dims=dims)
        config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_AUTO, count=1)
        if max_batch_size:
            config.dynamic_batching.SetInParent()
        for key, value in (parameters or {}).items():
            config.parameters[key].string_value = value
        change(config)
        folder = self._repository / name
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
        write(folder / "1" / (file or {"onnxruntime": "model.onnx", "pytorch": "model.pt"}[backend]))
        self.names.append(name)
        await self._client.load_model(name)
        return name

    def path(self, name: str, file: str) -> Path:
        return self._repository / name / "1" / file


@pytest.fixture
async def publish(
    client: triton_aio.InferenceServerClient, model_repository: Path
) -> AsyncIterator[_Published]:
    """Publishes and loads a model; gives its name."""
    published = _Published(client, model_repository)
    yield published
    for name in published.names:
        await client.unload_model(name)


async def _infer(
    client: triton_aio.InferenceServerClient,
    model: str,
    feed: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    inputs = []
    for name, array in feed.items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    wanted = None if outputs is None else [InferRequestedOutput(name) for name in outputs]
    result = await client.infer(model, inputs, outputs=wanted, client_timeout=60)
    return {tensor.name: result.as_numpy(tensor.name) for tensor in result.get_response().outputs}


def _two_outputs(path: Path, *, work: int = 0) -> None:
    """`sum [batch, 4]` and `scaled [batch, 4, time]` of `x [batch, 4, time]`; `work` makes it slow."""
    weights = numpy_helper.from_array(np.random.default_rng(0).random((4, 4), np.float32), "weights")
    axes = numpy_helper.from_array(np.array([2], np.int64), "axes")
    big = numpy_helper.from_array(np.full((512, 512), 1e-3, np.float32), "big")
    nodes = [
        helper.make_node("MatMul", ["weights", "x"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled", "axes"], ["sum"], keepdims=0),
    ]
    # The products depend on x, so that they can't be computed when the graph is loaded.
    nodes.append(helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0))
    nodes.append(helper.make_node("Add", ["big", "total"], ["turn0"]))
    for turn in range(work):
        nodes.append(helper.make_node("MatMul", [f"turn{turn}", "big"], [f"turn{turn + 1}"]))
    _save(path, nodes, {"x": ("b", 4, "t")}, {"sum": ("b", 4), "scaled": ("b", 4, "t")}, [weights, axes, big])


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int | str, ...]],
    outputs: Mapping[str, tuple[int | str, ...]],
    constants: list[onnx.TensorProto],
    types: Mapping[str, int] | None = None,
) -> None:
    def infos(tensors: Mapping[str, tuple[int | str, ...]]) -> list[onnx.ValueInfoProto]:
        kinds = types or {}
        return [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in tensors.items()
        ]

    graph = helper.make_graph(nodes, "graph", infos(inputs), infos(outputs), constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


_X = {"x": ("FP32", [4, -1])}
_TWO = {"sum": ("FP32", [4]), "scaled": ("FP32", [4, -1])}


@pytest.mark.parametrize("outputs", [None, ["sum"], ["scaled"], ["scaled", "sum"]])
async def test_onnx_answers_equal_onnx_runtime(
    client: triton_aio.InferenceServerClient, publish: _Published, outputs: list[str] | None
) -> None:
    name = await publish(_two_outputs, _X, _TWO)
    session = ort.InferenceSession(publish.path(name, "model.onnx"), providers=["CPUExecutionProvider"])
    for batch, time in ((1, 1), (2, 7), (33, 60), (64, 3)):
        x = np.random.default_rng(batch).random((batch, 4, time), np.float32)
        got = await _infer(client, name, {"x": x}, outputs)
        assert set(got) == set(outputs or _TWO)
        for output, array in got.items():
            np.testing.assert_array_equal(array, session.run([output], {"x": x})[0])


async def test_onnx_concurrent_requests_are_merged_and_keep_their_own_answers(
    client: triton_aio.InferenceServerClient, publish: _Published
) -> None:
    name = await publish(lambda path: _two_outputs(path, work=10), _X, _TWO)
    session = ort.InferenceSession(publish.path(name, "model.onnx"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    feeds = [rng.random((1 + index % 3, 4, 2 + index // 30), np.float32) for index in range(60)]
    wanted = [[["sum"], ["scaled", "sum"]][index % 5 == 0] for index in range(60)]
    answers = await asyncio.gather(
        *(_infer(client, name, {"x": x}, outputs) for x, outputs in zip(feeds, wanted, strict=True))
    )
    for x, outputs, answer in zip(feeds, wanted, answers, strict=True):
        assert set(answer) == set(outputs)
        for output, array in answer.items():
            np.testing.assert_allclose(array, session.run([output], {"x": x})[0], rtol=1e-5)
    (statistics,) = (await client.get_inference_statistics(name)).model_stats
    assert statistics.inference_count == sum(len(x) for x in feeds)
    assert statistics.execution_count < len(feeds)  # some were merged


async def test_onnx_one_bad_request_of_a_batch_fails_alone(
    client: triton_aio.InferenceServerClient, publish: _Published
) -> None:
    def lookup(path: Path) -> None:
        table = numpy_helper.from_array(np.arange(5, dtype=np.float32), "table")
        big = numpy_helper.from_array(np.full((700, 700), 1e-3, np.float32), "big")
        nodes = [
            helper.make_node("Gather", ["table", "i"], ["y"]),
            helper.make_node("ReduceSum", ["y"], ["total"], keepdims=0),
            helper.make_node("Add", ["big", "total"], ["busy"]),
            helper.make_node("MatMul", ["busy", "busy"], ["unused"]),
        ]
        _save(path, nodes, {"i": ("b", 1)}, {"y": ("b", 1)}, [table, big], {"i": TensorProto.INT64})

    name = await publish(lookup, {"i": ("INT64", [1])}, {"y": ("FP32", [1])})
    indices = [index % 5 if index % 7 else 99 for index in range(40)]
    answers = await asyncio.gather(
        *(_infer(client, name, {"i": np.array([[index]], np.int64)}) for index in indices),
        return_exceptions=True,
    )
    for index, answer in zip(indices, answers, strict=True):
        if index == 99:
            assert isinstance(answer, InferenceServerException)
            assert "out of data bounds" in str(answer)
        else:
            assert answer["y"].tolist() == [[float(index)]]


async def test_onnx_cancelled_request_leaves_its_neighbours_alone(
    client: triton_aio.InferenceServerClient, publish: _Published
) -> None:
    name = await publish(lambda path: _two_outputs(path, work=20), _X, _TWO)
    x = np.ones((1, 4, 3), np.float32)
    expected = (await _infer(client, name, {"x": x}))["sum"]
    tasks = [asyncio.create_task(_infer(client, name, {"x": x * (index + 1)})) for index in range(12)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for index, answer in enumerate(answers):
        if index % 3 == 0:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            np.testing.assert_allclose(answer["sum"], expected * (index + 1), rtol=1e-5)


async def test_onnx_without_a_batch_axis_answers_each_request(
    client: triton_aio.InferenceServerClient, publish: _Published
) -> None:
    def double(path: Path) -> None:
        _save(path, [helper.make_node("Add", ["x", "x"], ["y"])], {"x": ("n",)}, {"y": ("n",)}, [])

    name = await publish(double, {"x": ("FP32", [-1])}, {"y": ("FP32", [-1])}, max_batch_size=0)
    feeds = [np.arange(1 + index, dtype=np.float32) for index in range(8)]
    answers = await asyncio.gather(*(_infer(client, name, {"x": x}) for x in feeds))
    for x, answer in zip(feeds, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], 2 * x)


@pytest.mark.parametrize(
    ("datatype", "onnx_type", "rows"),
    [
        ("FP64", TensorProto.DOUBLE, np.array([[1.5], [2.5]], np.float64)),
        ("FP16", TensorProto.FLOAT16, np.array([[1.5], [2.5]], np.float16)),
        ("INT64", TensorProto.INT64, np.array([[1], [-2]], np.int64)),
        ("BOOL", TensorProto.BOOL, np.array([[True], [False]])),
        ("BYTES", TensorProto.STRING, np.array([["käse".encode()], [b""]], np.object_)),
    ],
)
async def test_onnx_datatypes_pass_unchanged(
    client: triton_aio.InferenceServerClient,
    publish: _Published,
    datatype: str,
    onnx_type: int,
    rows: np.ndarray,
) -> None:
    def identity(path: Path) -> None:
        node = helper.make_node("Identity", ["x"], ["y"])
        _save(path, [node], {"x": ("b", 1)}, {"y": ("b", 1)}, [], {"x": onnx_type, "y": onnx_type})

    name = await publish(identity, {"x": (datatype, [1])}, {"y": (datatype, [1])})
    answer = await _infer(client, name, {"x": rows})
    assert answer["y"].tolist() == rows.tolist()


async def test_onnx_settings_of_the_native_backend_are_accepted(
    client: triton_aio.InferenceServerClient, publish: _Published
) -> None:
    def change(config: Any) -> None:
        config.default_model_filename = "other.onnx"
        config.optimization.graph.level = 2

    name = await publish(
        _two_outputs,
        _X,
        _TWO,
        file="other.onnx",
        change=change,
        parameters={
            "intra_op_thread_count": "2",
            "inter_op_thread_count": "1",
            "execution_mode": "1",
            "enable_mem_arena": "0",
            "enable_mem_pattern": "false",
            "session.set_denormal_as_zero": "1",
        },
    )
    assert set(await _infer(client, name, {"x": np.ones((2, 4, 3), np.float32)})) == {"sum", "scaled"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parameters": {"intra_op_thread_count": "many"}},
            "intra_op_thread_count is 'many'; it must be a whole",
        ),
        ({"parameters": {"execution_mode": "2"}}, r"execution_mode is '2'; it must be one of \['0', '1'\]"),
        ({"file": "elsewhere.onnx"}, "The model file model.onnx is not in"),
        ({"outputs": {"other": ("FP32", [4])}}, r"declares the outputs \['other'\], the graph has \['sum'"),
        ({"inputs": {"z": ("FP32", [4, -1])}}, r"declares the inputs \['z'\], the graph has \['x'\]"),
        ({"write": lambda path: path.write_bytes(b"not a model")}, "Protobuf parsing failed"),
        (
            {"change": lambda config: config.instance_group[0].__setattr__("kind", 1)},
            "kind KIND_GPU but no GPUs are available",
        ),
    ],
)
async def test_onnx_that_cannot_be_served_fails_its_load_with_the_reason(
    publish: _Published, changes: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"write": _two_outputs, "inputs": _X, "outputs": _TWO} | changes
    with pytest.raises(InferenceServerException, match=message):
        await publish(**settings)


class _Pair(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv1d(4, 8, 3, padding=1)
        self.memory = torch.nn.LSTM(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sequence = torch.relu(self.convolution(x * scale.unsqueeze(2))).transpose(1, 2)
        states, _ = self.memory(sequence)
        return states[:, -1], states.mean(dim=1)


def _save_pair(path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # TorchScript is deprecated as a whole; users have it
        torch.jit.save(torch.jit.script(_Pair().eval()), str(path))


@pytest.mark.parametrize(("x", "scale"), [("INPUT__0", "INPUT__1"), ("x", "scale")])
async def test_torchscript_answers_equal_torch(
    client: triton_aio.InferenceServerClient, publish: _Published, x: str, scale: str
) -> None:
    name = await publish(
        _save_pair,
        {scale: ("FP32", [1]), x: ("FP32", [4, -1])},  # the order in the configuration doesn't matter
        {"mean__1": ("FP32", [16]), "last__0": ("FP32", [16])},
        backend="pytorch",
        parameters={"INTRA_OP_THREAD_COUNT": "1"},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(publish.path(name, "model.pt")))
    rng = np.random.default_rng(0)
    feeds = [
        {x: rng.random((batch, 4, time), np.float32), scale: rng.random((batch, 1), np.float32)}
        for batch, time in ((1, 1), (2, 5), (33, 30), (64, 60), *[(1, 8)] * 20)
    ]
    answers = await asyncio.gather(*(_infer(client, name, feed) for feed in feeds))
    for feed, answer in zip(feeds, answers, strict=True):
        with torch.inference_mode():
            last, mean = module(torch.from_numpy(feed[x]), torch.from_numpy(feed[scale]))
        np.testing.assert_allclose(answer["last__0"], last.numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(answer["mean__1"], mean.numpy(), rtol=1e-4, atol=1e-6)
    only = await _infer(client, name, feeds[1], ["mean__1"])
    np.testing.assert_array_equal(only["mean__1"], answers[1]["mean__1"])


async def test_torchscript_with_other_names_fails_its_load_with_the_convention(publish: _Published) -> None:
    with pytest.raises(InferenceServerException, match="must be named <anything>__<index>"):
        await publish(
            _save_pair,
            {"first": ("FP32", [4, -1]), "second": ("FP32", [1])},
            {"last__0": ("FP32", [16])},
            backend="pytorch",
        )


async def test_torchscript_failing_request_gets_the_modules_error(
    client: triton_aio.InferenceServerClient, publish: _Published
) -> None:
    name = await publish(
        _save_pair,
        {"x": ("FP32", [-1, -1]), "scale": ("FP32", [1])},
        {"last__0": ("FP32", [16]), "mean__1": ("FP32", [16])},
        backend="pytorch",
    )
    with pytest.raises(InferenceServerException, match="to have 4 channels, but got 3 channels"):
        await _infer(
            client, name, {"x": np.ones((1, 3, 5), np.float32), "scale": np.ones((1, 1), np.float32)}
        )
    assert await _infer(
        client, name, {"x": np.ones((1, 4, 5), np.float32), "scale": np.ones((1, 1), np.float32)}
    )
