"""Sources of a normalisation, in their order, and what is refused in each."""

import json

import pytest

from exporters.checkpoints.normalization import file_beside, find_normalization, parse_normalization
from exporters.errors import InvalidConfig

REQUEST = {"mean": [1.0, 2.0], "scale": [3.0, 4.0]}
BESIDE = {"mean": [5.0], "scale": [6.0]}
RECORDED = {"mean": [7.0], "scale": [8.0]}


@pytest.mark.parametrize(
    ("request_", "beside", "recorded", "mean"),
    [
        (REQUEST, BESIDE, RECORDED, (1.0, 2.0)),
        (None, BESIDE, RECORDED, (5.0,)),
        (None, None, RECORDED, (7.0,)),
        (None, None, None, None),
    ],
)
def test_find_takes_the_first_source_that_is_there(tmp_path, request_, beside, recorded, mean):
    checkpoint = tmp_path / "model.v1.pth"
    if beside is not None:
        file_beside(checkpoint).write_text(json.dumps(beside))

    found = find_normalization(checkpoint, request=request_, config={"normalization": recorded})

    assert (found and found.mean) == mean


def test_file_beside_keeps_the_dots_of_the_name(tmp_path):
    assert file_beside(tmp_path / "model.v1.pth").name == "model.v1.normalization.json"


WRONG = {
    "list": [1.0],
    "text": "x",
    "no_scale": {"mean": [1.0]},
    "no_mean": {"scale": [1.0]},
    "lengths": {"mean": [1.0, 2.0], "scale": [1.0]},
    "empty": {"mean": [], "scale": []},
    "zero_scale": {"mean": [1.0], "scale": [0]},
    "negative_scale": {"mean": [1.0], "scale": [-1.0]},
    "nan": {"mean": [float("nan")], "scale": [1.0]},
    "infinite": {"mean": [1.0], "scale": [float("inf")]},
    "text_number": {"mean": ["1"], "scale": [1.0]},
    "bool": {"mean": [True], "scale": [1.0]},
    "nested": {"mean": [[1.0]], "scale": [1.0]},
}


@pytest.mark.parametrize("case", WRONG)
def test_parse_of_anything_else_names_the_source(case):
    with pytest.raises(InvalidConfig, match="the request") as raised:
        parse_normalization(WRONG[case], source="the request")

    assert raised.value.expected


def test_parse_of_a_zero_scale_names_the_channel():
    with pytest.raises(InvalidConfig, match="channel 2") as raised:
        parse_normalization({"mean": [0, 0, 0], "scale": [1, 1, 0]}, source="x")

    assert "1.0" in raised.value.remedy


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"mean": [NaN], "scale": [1]}', b"[" * 100_000]
)
def test_find_with_a_damaged_file_beside_fails_rather_than_passing_it_over(tmp_path, content):
    checkpoint = tmp_path / "model.pth"
    file_beside(checkpoint).write_bytes(content)

    with pytest.raises(InvalidConfig, match=r"model\.normalization\.json"):
        find_normalization(checkpoint, request=None, config={"normalization": RECORDED})
