"""The model card: written as the schema says, read back equal, and digests that see every part of the content."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.card import (
    Card,
    CardMCDropout,
    CardNormalization,
    CardSource,
    CardVerification,
    canonical_json,
    card_tensors,
    content_digest,
    decode_card,
    encode_card,
    read_card,
)
from exporters.errors import InvalidModel
from exporters.spec import Device, ModelFormat, Normalization, TensorSpec

KEYS = [
    "schema_version", "model_type", "version", "triton_model", "description", "format", "created_at", "source",
    "content_digest", "inputs", "outputs", "max_batch_size", "device", "instance_count", "config", "normalization",
    "mc_dropout", "class_names", "feature_names", "metrics", "calibration", "checksums", "size_bytes", "verification",
    "versions", "warnings",
]  # fmt: skip


def make_card(**changes: object) -> Card:
    values = {
        "schema_version": 1,
        "model_type": "volatility",
        "version": "v1",
        "triton_model": "volatility-v1",
        "description": "",
        "format": ModelFormat.ONNX,
        "created_at": "2026-01-02T03:04:05Z",
        "source": CardSource(file_name="x.onnx", sha256="00", size_bytes=1),
        "content_digest": "11",
        "inputs": card_tensors((TensorSpec(name="x", shape=(5, -1)),), model_format=ModelFormat.ONNX),
        "outputs": card_tensors((TensorSpec(name="y", shape=(3,)),), model_format=ModelFormat.ONNX),
        "max_batch_size": 64,
        "device": Device.AUTO,
        "instance_count": 1,
        "config": {"a": [1, 2]},
        "normalization": None,
        "mc_dropout": None,
        "class_names": None,
        "feature_names": None,
        "metrics": {},
        "calibration": None,
        "checksums": {},
        "size_bytes": 1,
        "verification": CardVerification(
            max_relative_error=None, batch_sizes=(1, 2), time_lengths=(), reference="none"
        ),
        "versions": {},
        "warnings": (),
    }
    return Card(**(values | changes))


@pytest.mark.parametrize(
    "card",
    [
        make_card(),
        make_card(
            normalization=CardNormalization(mean=(0.1,), scale=(2.0,)),
            mc_dropout=CardMCDropout(samples=100, seed=1),
            class_names=("sell", "hold"),
            metrics={"accuracy": 0.5},
            warnings=("a",),
        ),
    ],
)
def test_encode_writes_every_key_and_reads_back_equal(card):
    data = encode_card(card)

    assert list(json.loads(data)) == KEYS
    assert decode_card(data, where="x") == card


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"schema_version": "1"},
        {"inputs": None},
        {"format": "keras"},
        {"max_batch_size": "64"},
    ],
)
def test_decode_of_another_schema_names_the_file(change):
    data = json.dumps(json.loads(encode_card(make_card())) | change).encode()

    with pytest.raises(InvalidModel, match=r"volatility-v1/model\.json"):
        decode_card(data, where="volatility-v1/model.json")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"null"])
def test_decode_of_something_else_is_an_invalid_model(data):
    with pytest.raises(InvalidModel):
        decode_card(data, where="x")


def test_decode_with_a_key_of_a_later_release_ignores_it():
    data = json.dumps(json.loads(encode_card(make_card())) | {"later": 1}).encode()

    assert decode_card(data, where="x") == make_card()


def test_read_without_a_card_says_so(tmp_path):
    with pytest.raises(InvalidModel, match="no readable model"):
        read_card(tmp_path)


def test_card_tensors_of_torchscript_are_named_by_index():
    specs = (TensorSpec(name="x", shape=(2,)), TensorSpec(name="weights", shape=(3,)))

    assert [t.triton_name for t in card_tensors(specs, model_format=ModelFormat.TORCHSCRIPT)] == [
        "x__0",
        "weights__1",
    ]
    assert [t.triton_name for t in card_tensors(specs, model_format=ModelFormat.ONNX)] == ["x", "weights"]
    assert [t.name for t in card_tensors(specs, model_format=ModelFormat.TORCHSCRIPT)] == ["x", "weights"]


CONTENT = {
    "model_type": "a",
    "source_sha256": "b",
    "config": {"x": 1, "y": [1, 2]},
    "normalization": Normalization(mean=(0.0,), scale=(1.0,)),
    "model_format": ModelFormat.ONNX,
    "device": Device.CPU,
    "options": {"max_batch_size": 64},
}


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "c"},
        {"source_sha256": "c"},
        {"config": {"x": 2, "y": [1, 2]}},
        {"config": {"x": 1}},
        {"normalization": None},
        {"normalization": Normalization(mean=(0.0,), scale=(2.0,))},
        {"model_format": ModelFormat.TORCHSCRIPT},
        {"device": Device.GPU},
        {"options": {"max_batch_size": 32}},
    ],
)
def test_content_digest_differs_with_each_part_of_the_content(change):
    assert content_digest(**(CONTENT | change)) != content_digest(**CONTENT)


def test_content_digest_differs_with_the_exporters_revision(monkeypatch):
    before = content_digest(**CONTENT)
    monkeypatch.setattr("exporters.card.EXPORT_REVISION", 1_000_000)

    assert content_digest(**CONTENT) != before


def test_content_digest_is_the_same_whatever_the_order_of_keys():
    assert content_digest(**CONTENT | {"config": {"y": [1, 2], "x": 1}}) == content_digest(**CONTENT)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(_JSON)
def test_canonical_json_depends_on_the_value_only(value):
    def reversed_keys(item):
        if isinstance(item, dict):
            return {key: reversed_keys(entry) for key, entry in reversed(item.items())}
        return [reversed_keys(entry) for entry in item] if isinstance(item, list) else item

    data = canonical_json(value)

    assert canonical_json(reversed_keys(value)) == data
    assert json.loads(data) == value
