"""Ready-made ONNX files: what is taken over, and what is refused by name."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.card import read_card
from exporters.errors import (
    ExportError,
    FileTooLarge,
    InvalidConfig,
    InvalidModel,
    VersionConflict,
)
from exporters.pipeline import export
from exporters.protocol import ExportRequest, Status
from exporters.repository_check import check_version
from exporters.spec import ModelFormat
from tests.unit.exporters.ready_made_files import (
    HYBRID_SHAPES,
    OUTPUTS,
    assert_nothing_published,
    folder_of,
    hybrid_onnx,
    linear,
    shapes_of,
    take,
    value,
)

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
]


def test_onnx_is_published_as_it_is(tmp_path):
    path = linear(tmp_path / "model.bin")  # the name doesn't matter

    result = take(tmp_path, path, config={"note": 1}, max_batch_size=16)

    card = read_card(folder_of(tmp_path))
    assert result.card == card
    assert result.status is Status.PUBLISHED
    assert (folder_of(tmp_path) / "1" / "model.onnx").read_bytes() == path.read_bytes()
    assert [(t.name, t.shape, t.datatype) for t in (*card.inputs, *card.outputs)] == [
        ("x", (4,), "FP32"),
        ("y", (2,), "FP32"),
    ]
    assert (card.format, card.max_batch_size, card.config) == (ModelFormat.ONNX, 16, {"note": 1})
    assert card.verification.batch_sizes == (1, 2)
    assert check_version(folder_of(tmp_path)).problems == ()


def test_onnx_taken_again_is_unchanged_and_other_content_a_conflict(tmp_path):
    path = linear(tmp_path / "model.onnx")
    take(tmp_path, path)
    before = (folder_of(tmp_path) / "model.json").stat()

    assert take(tmp_path, path).status is Status.UNCHANGED
    assert (folder_of(tmp_path) / "model.json").stat() == before
    with pytest.raises(VersionConflict):
        take(tmp_path, path, max_batch_size=8)
    with pytest.raises(VersionConflict):
        take(tmp_path, linear(tmp_path / "model.onnx", opset=18))
    assert take(tmp_path, path, overwrite=True).status is Status.PUBLISHED
    assert read_card(folder_of(tmp_path)).versions["opset"] == 18


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"opset": 22}, "opset 22"),
        ({"ir_version": 11}, "IR version 11"),
        ({"domain": "com.example"}, "com.example.MatMul"),
        ({"shapes": {"x": (1, 4), "y": ("batch", 2)}}, "[1, 4]"),
        ({"shapes": {"x": ("batch", 4), "y": (1, 2)}}, "[1, 2]"),
        ({"shapes": {"x": ("batch", 4), "y": ()}}, "[]"),
    ],
)
def test_onnx_that_triton_could_not_serve_is_refused_by_name(tmp_path, options, named):
    path = linear(tmp_path / "model.onnx", **options)

    with pytest.raises(InvalidModel) as raised:
        take(tmp_path, path)

    assert raised.value.got is not None
    assert named in raised.value.got
    assert_nothing_published(tmp_path)


def test_onnx_with_a_custom_operator_in_a_subgraph_is_refused(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("Custom", ["x"], ["z"], domain="com.example")], "inner", [], [value("z", None)]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    condition = numpy_helper.from_array(np.array(True), "c")
    graph = helper.make_graph([node], "g", [value("x", ("b", 4))], [value("y", ("b", 4))], [condition])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), str(path))

    with pytest.raises(InvalidModel, match=r"com\.example\.Custom"):
        take(tmp_path, path)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
def test_onnx_that_is_truncated_is_refused(tmp_path, kept):
    path = linear(tmp_path / "model.onnx")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])

    with pytest.raises(InvalidModel):
        take(tmp_path, path)
    assert_nothing_published(tmp_path)


def test_onnx_that_fails_when_run_is_refused(tmp_path):
    bad = helper.make_node("Reshape", ["x", "s"], ["y"])
    shape = numpy_helper.from_array(np.array([7, 3], dtype=np.int64), "s")
    graph = helper.make_graph([bad], "g", [value("x", ("b", 4))], [value("y", ("b", 3))], [shape])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))

    with pytest.raises(InvalidModel, match="doesn't run"):
        take(tmp_path, path)
    assert_nothing_published(tmp_path)


def test_onnx_whose_output_lacks_the_batch_axis_is_refused(tmp_path):
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)
    graph = helper.make_graph([node], "g", [value("x", ("b", 4))], [value("y", ("b", 4))])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))

    with pytest.raises(InvalidModel, match="batch as its first axis"):
        take(tmp_path, path)


def test_onnx_with_external_data_beside_it_is_published_as_one_file(tmp_path):
    path = linear(tmp_path / "source.onnx")
    split = tmp_path / "split.onnx"
    onnx.save_model(
        onnx.load(str(path)), str(split), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    assert (tmp_path / "weights.bin").exists()

    card = take(tmp_path, split).card

    artefact = folder_of(tmp_path) / "1" / "model.onnx"
    assert [entry.name for entry in artefact.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(artefact), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(
        session.run(None, {"x": np.ones((3, 4), np.float32)})[0], np.full((3, 2), 4.0)
    )
    (tmp_path / "weights.bin").write_bytes(bytes(32))
    with pytest.raises(VersionConflict):
        take(tmp_path, split)
    assert card.source.size_bytes == split.stat().st_size + 32


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "missing.bin", "sub/../../secret.bin", "link.bin"]
)
def test_onnx_with_external_data_elsewhere_is_refused(tmp_path, location):
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(32))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = onnx.load(str(linear(folder / "model.onnx")))
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())

    with pytest.raises(InvalidModel, match="external data") as raised:
        take(tmp_path, folder / "model.onnx")

    assert raised.value.got == location
    assert_nothing_published(tmp_path)


def test_onnx_with_a_dynamic_axis_is_tried_at_the_length_of_the_configuration(tmp_path):
    weight = numpy_helper.from_array(np.ones((23, 2), dtype=np.float32), "w")
    graph = helper.make_graph(  # runs at a length of 23 only
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", ("b", "t"))],
        [value("y", ("b", 2))],
        [weight],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))

    with pytest.raises(InvalidModel):
        take(tmp_path, path)
    assert take(tmp_path, path, config={"sequence_length": 23}).card.verification.time_lengths == (23,)


def test_onnx_of_a_known_type_has_the_types_tensors(tmp_path):
    card = take(tmp_path, hybrid_onnx(tmp_path / "m.onnx"), model_type="cnn_lstm_hybrid").card

    assert [(tensor.name, tensor.shape) for tensor in card.inputs] == [("x", (5, -1))]
    assert shapes_of(card) == HYBRID_SHAPES


@pytest.mark.parametrize("wrong", OUTPUTS)
def test_onnx_of_a_known_type_without_one_of_its_tensors_is_refused(tmp_path, wrong):
    names = [f"other_{name}" if name == wrong else name for name in OUTPUTS]

    with pytest.raises(InvalidModel, match="outputs aren't those") as raised:
        take(tmp_path, hybrid_onnx(tmp_path / "m.onnx", names), model_type="cnn_lstm_hybrid")

    assert wrong in raised.value.expected


def test_onnx_of_a_known_type_with_swapped_tensors_is_refused(tmp_path):
    names = OUTPUTS.copy()
    names[2], names[3] = names[3], names[2]

    with pytest.raises(InvalidModel, match="doesn't have the shape"):
        take(tmp_path, hybrid_onnx(tmp_path / "m.onnx", names), model_type="cnn_lstm_hybrid")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"format": ModelFormat.TORCHSCRIPT}, InvalidConfig),
        ({"normalization": {"mean": [0.0], "scale": [1.0]}}, InvalidConfig),
        ({"version": "../x"}, InvalidConfig),
        ({"version": ""}, InvalidConfig),
        ({"version": "v" * 65}, InvalidConfig),
        ({"model_type": "Volatility"}, InvalidConfig),
        ({"model_type": "a/b"}, InvalidConfig),
        ({"max_batch_size": 0}, InvalidConfig),
        ({"instance_count": 1000}, InvalidConfig),
        ({"tensorrt": True}, InvalidConfig),
        ({"model_type": "rl_ensemble"}, ExportError),
    ],
)
def test_request_that_cannot_be_is_refused_and_leaves_nothing(tmp_path, changes, error):
    with pytest.raises(error):
        take(tmp_path, linear(tmp_path / "m.onnx"), **changes)

    assert_nothing_published(tmp_path)


def test_file_beyond_the_limit_is_refused(tmp_path):
    path = linear(tmp_path / "m.onnx")
    request = ExportRequest(
        model_type="volatility", version="v1", file_path=str(path), repository=str(tmp_path / "repository")
    )

    with pytest.raises(FileTooLarge):
        export(request, max_bytes=100)


def test_card_of_a_ready_made_model_holds_every_key_as_json(tmp_path):
    take(tmp_path, linear(tmp_path / "m.onnx"))

    card = json.loads((folder_of(tmp_path) / "model.json").read_bytes())
    assert card["verification"] == {
        "max_relative_error": None,
        "batch_sizes": [1, 2],
        "time_lengths": [],
        "reference": "none",
    }
    assert card["normalization"] is card["mc_dropout"] is card["calibration"] is None


def test_onnx_that_changes_after_it_was_copied_is_published_as_it_was_copied(tmp_path):
    path = linear(tmp_path / "model.onnx")
    original = path.read_bytes()
    request = ExportRequest(
        model_type="volatility", version="v1", file_path=str(path), repository=str(tmp_path / "repository")
    )

    card = export(request, on_stage=lambda stage: stage == "building" and path.write_bytes(b"other")).card

    assert (folder_of(tmp_path) / "1" / "model.onnx").read_bytes() == original
    assert card.source.sha256 == hashlib.sha256(original).hexdigest()
    assert sorted(entry.name for entry in folder_of(tmp_path).iterdir()) == [
        "1",
        "config.pbtxt",
        "model.json",
    ]


def external(tensor: onnx.TensorProto, location: str) -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def function_default(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """y = x + F's default value, which is the tensor."""
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, ref_attr_name="val")
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function(
        "local", "F", ["a"], ["b"], [constant, helper.make_node("Add", ["a", "c"], ["b"])], imports, []
    )
    function.attribute_proto.add(name="val", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    graph = helper.make_graph(
        [helper.make_node("F", ["x"], ["y"], domain="local")],
        "g",
        [value("x", ("b", 4))],
        [value("y", ("b", 4))],
    )
    return helper.make_model(
        graph, opset_imports=[*imports, helper.make_opsetid("local", 1)], functions=[function], ir_version=8
    )


def sparse_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """y = x + a sparse constant, whose values are the tensor."""
    indices = numpy_helper.from_array(np.arange(4, dtype=np.int64), "i")
    constant = helper.make_node(
        "Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(tensor, indices, [4])
    )
    nodes = [constant, helper.make_node("Add", ["x", "c"], ["y"])]
    graph = helper.make_graph(nodes, "g", [value("x", ("b", 4))], [value("y", ("b", 4))])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("make", [function_default, sparse_constant])
@pytest.mark.parametrize("location", ["../secret.bin", "beside.bin"])
def test_onnx_with_external_data_that_is_no_initializer_is_refused(tmp_path, make, location):
    folder = tmp_path / "models"
    folder.mkdir()
    for secret in (tmp_path / "secret.bin", folder / "beside.bin"):
        secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    tensor = external(numpy_helper.from_array(np.zeros(4, np.float32), "v"), location)
    (folder / "model.onnx").write_bytes(make(tensor).SerializeToString())

    with pytest.raises(InvalidModel, match="external data") as raised:
        take(tmp_path, folder / "model.onnx")

    assert raised.value.got == location
    assert_nothing_published(tmp_path)
