"""Hostile checkpoints: each is refused with the name of what it tried, and none of it happens."""

import io
import pickle
import pickletools
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.checkpoints.archive import ZipContainer
from exporters.checkpoints.pickle_data import interpret
from exporters.checkpoints.reader import open_checkpoint
from exporters.errors import CorruptCheckpoint, ExportError, UnsafeCheckpoint, UnsupportedCheckpoint
from exporters.pipeline import export
from exporters.protocol import ExportRequest, error_event
from tests.unit.exporters.crafted import (
    call,
    document,
    legacy_checkpoint,
    name,
    storage,
    tensor,
    text,
    zip_checkpoint,
)

REFUSED_CALLS = [
    "os.system", "posix.system", "nt.system", "subprocess.Popen", "subprocess.check_output", "pty.spawn",
    "builtins.eval", "builtins.exec", "builtins.getattr", "builtins.__import__", "builtins.compile", "__builtin__.eval",
    "builtins.open", "builtins.bytearray", "builtins.list", "builtins.object", "importlib.import_module",
    "runpy.run_path", "runpy._run_code", "timeit.timeit", "operator.attrgetter", "functools.partial",
    "types.FunctionType", "types.CodeType", "webbrowser.open", "shutil.rmtree", "pickle.loads", "code.interact",
    "torch.load", "torch.hub.load", "torch.storage._load_from_bytes", "torch.FloatStorage", "torch.float32",
    "torch.jit.unsupported_tensor_ops.execWrapper", "torch._utils._rebuild_wrapper_subclass",
    "torch._tensor._rebuild_from_type_v2", "torch.nn.Linear", "numpy.load", "numpy.ndarray",
    "numpy.testing._private.utils.runstring", "joblib.load", "copyreg._reconstructor", "codecs.decode",
    "logging.config.dictConfig", "logging.Config", "os.PathConfig", "torch.TrainingConfig", "numpy.ArrayConfig",
    "training.models.build_config", "training.models.HybridModel", "training.models.ModelConfigFactory",
]  # fmt: skip


def touch(marker: Path) -> bytes:
    return text(f"touch {marker}")


def write(container: str, path: Path, payload: bytes) -> Path:
    return {"zip": zip_checkpoint, "legacy": legacy_checkpoint}[container](path, payload)


def read(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        checkpoint.arrays()


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("function", REFUSED_CALLS)
def test_open_with_call_of_a_foreign_global_refuses_it_by_name(tmp_path, container, function):
    marker = tmp_path / "marker"
    path = write(container, tmp_path / "model.pth", document(call(function, touch(marker))))

    with pytest.raises(UnsafeCheckpoint) as raised:
        read(path)

    if function == "torch.float32":  # a dtype is a word, and a word can't be called
        assert raised.value.got == "str"
    else:
        assert raised.value.got == repr(function)
        assert function in raised.value.detail
    assert raised.value.remedy
    assert not marker.exists()


def test_the_attack_is_real_for_an_unpickler(tmp_path):
    marker = tmp_path / "marker"
    attack = tmp_path / "attack.pickle"
    attack.write_bytes(document(call("os.system", touch(marker))))

    subprocess.run(
        [sys.executable, "-c", "import pickle,sys; pickle.load(open(sys.argv[1],'rb'))", attack], check=True
    )

    assert marker.exists()


class _Reduced:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        import os  # noqa: PLC0415

        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["config", "state", "key", "list", "metrics", "root"])
def test_open_with_a_nested_reduce_refuses_it_wherever_it_is(tmp_path, protocol, place):
    marker = tmp_path / "marker"
    evil = _Reduced(marker)
    root = {
        "config": {"model_state_dict": {}, "config": {"a": {"b": [evil]}}},
        "state": {"model_state_dict": {"weight": evil}, "config": {}},
        "key": {"model_state_dict": {}, "config": {}, evil: 1},
        "list": [1, (2, evil)],
        "metrics": {"model_state_dict": {}, "config": {}, "metrics": {"loss": evil}},
        "root": evil,
    }[place]
    path = zip_checkpoint(tmp_path / "model.pth", pickle.dumps(root, protocol=protocol))

    with pytest.raises(UnsafeCheckpoint) as raised:
        read(path)

    assert raised.value.got in ("'posix.system'", "'os.system'")
    assert not marker.exists()


CONFIG = "training.models.HybridModelConfig"
OPCODE_TRICKS = {
    "inst": b"(" + text("x") + b"ios\nsystem\n.",
    "obj": b"(" + name("os.system") + text("x") + b"o.",
    "stack_global_dotted": b"\x80\x04" + text("os") + text("path.os.system") + b"\x93.",
    "stack_global_dotted_config": b"\x80\x04"
    + text("training")
    + text("Config.__init__.__globals__")
    + b"\x93.",
    "global_unused": name("os.system") + b"0N.",
    "global_in_memo": name("os.system") + b"q\x00h\x00" + b"(" + text("x") + b"tR.",
    "config_called_with_arguments": document(call(CONFIG, text("x"))),
    "config_constructed_with_arguments": document(name(CONFIG) + b"(" + text("x") + b"t\x81"),
    "config_constructed_with_keywords": b"\x80\x04"
    + document(name(CONFIG) + b")}" + text("a") + b"K\x01s\x92").removeprefix(b"\x80\x02"),
    "config_inst_with_arguments": document(b"(" + text("x") + b"itraining.models\nHybridModelConfig\n"),
    "config_called_twice": document(name(CONFIG) + b")R)R"),
    "build_on_the_class": document(name(CONFIG) + b"N}" + text("__setstate__") + name(CONFIG) + b"s\x86b"),
    "build_with_a_string_state": document(name(CONFIG) + b")\x81" + text("x") + b"b"),
    "build_with_number_keys": document(name(CONFIG) + b")\x81}K\x01K\x02sb"),
    "build_on_a_tensor_type": document(name("torch.FloatStorage") + b"}b"),
    "newobj_of_a_storage": document(name("torch.FloatStorage") + b")\x81"),
    "newobj_of_a_function": document(name("torch._utils._rebuild_tensor_v2") + b")\x81"),
    "newobj_of_ordered_dict": document(name("collections.OrderedDict") + b")\x81"),
    "call_of_a_string": document(text("os.system") + b"(" + text("x") + b"tR"),
    "reconstructor_of_a_foreign_base": document(
        call("copyreg._reconstructor", name(CONFIG), name("builtins.list"), b"]")
    ),
    "enum_called_with_a_list": document(call("training.models.FusionType", b"]")),
    "numpy_object_dtype": document(call("numpy.dtype", text("O8"), b"\x89", b"\x88")),
    "numpy_scalar_of_no_dtype": document(call("numpy.core.multiarray.scalar", text("x"), text("y"))),
    "numpy_array_of_objects": document(
        call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), b")", text("b"))
        + b"(K\x01)]\x89]tb"
    ),
    "encode_to_another_codec": document(call("_codecs.encode", text("x"), text("rot13"))),
    "tensor_of_no_storage": document(
        call("torch._utils._rebuild_tensor_v2", text("x"), b"K\x00", b")", b")", b"\x89", b"}")
    ),
    "persistent_text": b"Pos.system\n.",
    "persistent_string": document(text("os.system") + b"Q"),
    "persistent_other_kind": document(b"(" + text("module") + text("x") + b"tQ"),
    "persistent_foreign_storage": document(b"(" + text("storage") + text("os.system") + b"tQ"),
    "extension_1": b"\x80\x02\x82\x01.",
    "extension_2": b"\x80\x02\x83\x01\x00.",
    "extension_4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "out_of_band_buffer": b"\x80\x05\x97.",
    "read_only_buffer": b"\x80\x05N\x98.",
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("trick", OPCODE_TRICKS)
def test_open_with_a_pickle_trick_refuses_it_as_unsafe(tmp_path, container, trick):
    path = write(container, tmp_path / "model.pth", OPCODE_TRICKS[trick])

    with pytest.raises(UnsafeCheckpoint):
        read(path)


BOMBS = {
    "string_of_an_exabyte": b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"x",
    "bytes_of_an_exabyte": b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"x",
    "integer_of_a_megabit": b"\x80\x02\x8b" + (131_072).to_bytes(4, "little") + b"\x01" * 131_072 + b".",
    "integer_in_text": b"L" + b"9" * 100_000 + b"L\n.",
    "one_list_made_a_set_over_and_over": b"\x80\x02](" + b"N" * 500_000 + b"eq\x00" + (
        name("builtins.set") + b"h\x00\x85R0"
    ) * 1000 + b".",
    "one_text_encoded_over_and_over": b"\x80\x02"
    + text("x" * 1_000_000)
    + b"q\x00"
    + (name("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86R0") * 100
    + b".",
    "key_of_deep_tuples": b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.",
    "mark_as_value": b"\x80\x02((tR.",
    "empty_stack": b"\x80\x02R.",
    "memo_that_is_missing": b"\x80\x02h\x07.",
    "no_stop": b"\x80\x02}",
    "leftovers": b"\x80\x02NN.",
    "odd_items": b"\x80\x02}(K\x01u.",
    "append_to_a_string": b"\x80\x02X\x01\x00\x00\x00aNa.",
}  # fmt: skip


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_open_with_a_pickle_bomb_refuses_it_as_corrupt(tmp_path, container, bomb):
    path = write(container, tmp_path / "model.pth", BOMBS[bomb])

    with pytest.raises(CorruptCheckpoint):
        read(path)


def test_open_with_lists_that_unfold_without_end_refuses_the_configuration(tmp_path):
    value: list = []
    for _ in range(10):
        value = [value] * 10  # pickled once each: 10^10 values from a few hundred bytes
    path = zip_checkpoint(
        tmp_path / "model.pth", pickle.dumps({"model_state_dict": {}, "config": {"a": value}}, protocol=2)
    )

    with pytest.raises(UnsupportedCheckpoint) as raised:
        read(path)

    assert "more than 20,000 values" in raised.value.got


def test_open_with_a_list_in_itself_refuses_the_configuration(tmp_path):
    path = zip_checkpoint(tmp_path / "model.pth", document(b"}" + text("a") + b"]q\x00h\x00as"))

    with pytest.raises(UnsupportedCheckpoint):
        read(path)


def test_open_with_deep_nesting_refuses_the_configuration(tmp_path):
    path = zip_checkpoint(
        tmp_path / "model.pth", document(b"}" + text("a") + b"]" * 100_000 + b"a" * 99_999 + b"s")
    )

    with pytest.raises(UnsupportedCheckpoint, match="plain values"):
        read(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_open_with_a_bare_hostile_pickle_refuses_it_as_unsafe(tmp_path, protocol):
    marker = tmp_path / "marker"
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(_Reduced(marker), protocol=protocol))

    with pytest.raises(UnsafeCheckpoint, match=r"(posix|os)\.system"):
        read(path)

    assert not marker.exists()


def test_open_with_a_storage_of_a_foreign_type_names_it(tmp_path):
    path = zip_checkpoint(tmp_path / "model.pth", document(b"}", storage("0", 1, "torch.QUInt8Storage")))

    with pytest.raises(UnsafeCheckpoint, match="QUInt8Storage"):
        read(path)


def test_export_of_a_hostile_checkpoint_leaves_the_repository_without_a_version(tmp_path):
    marker = tmp_path / "marker"
    path = zip_checkpoint(tmp_path / "model.pth", document(call("os.system", touch(marker))))
    repository = tmp_path / "repository"

    with pytest.raises(UnsafeCheckpoint):
        export(
            ExportRequest(
                model_type="cnn_lstm_hybrid", version="v1", file_path=str(path), repository=str(repository)
            )
        )

    assert not marker.exists()
    assert not repository.exists()


def test_interpret_of_endless_operations_stops_at_the_limit():
    stream = io.BytesIO(b"\x80\x02" + b"N0" * 10_000 + b"N.")

    with pytest.raises(CorruptCheckpoint, match="too long"):
        interpret(stream, max_operations=1000)
    assert stream.tell() < 2000


def measured(work: Callable[[], object]) -> tuple[float, int]:
    """Processor seconds, and the most bytes held, of what must end in an export error."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ExportError):
            work()
        return time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


DEVICE = b"\x80\x02" + name("torch.device")
BOUNDED = {
    # a tuple of itself twice, 40 deep: its text would take 2^40 characters
    "device_of_doubling_tuples": b"\x80\x02" + text("aaaaaaaa") + b"q\x00" + b"".join(
        b"h" + bytes([index]) + b"h" + bytes([index]) + b"\x86q" + bytes([index + 1]) for index in range(40)
    ) + name("torch.device") + b"h\x28\x85R.",
    "device_of_deep_tuples": DEVICE + b"N" + b"\x85" * 100_000 + b"\x85R.",
    "device_of_long_text": DEVICE + text("x" * 1_000_000) + b"\x85R.",
    "device_of_a_long_index": DEVICE + text("cpu") + text("x") + b"\x86R.",
    "one_dict_copied_over_and_over": b"\x80\x02}q\x00(" + b"".join(
        b"J" + struct.pack("<i", index) + b"N" for index in range(5_000)
    ) + b"u0]q\x01(" + (name("collections.OrderedDict") + b"h\x00\x85R") * 3000 + b"e.",
    "one_list_made_a_dict_over_and_over": b"\x80\x02]q\x00(" + b"".join(
        b"J" + struct.pack("<i", index) + b"N\x86" for index in range(5_000)
    ) + b"e0]q\x01(" + (name("collections.OrderedDict") + b"h\x00\x85R") * 3000 + b"e.",
}  # fmt: skip


@pytest.mark.parametrize("case", BOUNDED)
def test_interpret_of_what_would_unfold_stays_within_time_and_memory(case):
    seconds, held = measured(lambda: interpret(io.BytesIO(BOUNDED[case])))

    assert seconds < 10
    assert held < 64 << 20


def _metrics(pickled: bytes) -> bytes:
    return b"\x80\x02}(" + text("model_state_dict") + b"}" + text("metrics") + pickled + b"u."


@pytest.mark.parametrize("place", ["value", "key"])
def test_open_with_one_text_shared_over_and_over_stays_within_memory(tmp_path, place):
    long = "x" * (200 if place == "key" else 100_000)
    inner = b"}q\x01(" + text(long) + b"q\x00K\x01u" if place == "key" else text(long) + b"q\x01"
    path = zip_checkpoint(
        tmp_path / "model.pth", _metrics(b"}" + text("a") + b"](" + inner + b"h\x01" * 9_000 + b"es")
    )

    def read_structure() -> None:
        with open_checkpoint(path):
            pass

    _, held = measured(read_structure)

    assert held < 16 << 20
    with pytest.raises(UnsupportedCheckpoint) as raised:
        read(path)
    assert "bytes of text" in raised.value.got


SURROGATE = b"X\x05\x00\x00\x00a\xed\xa0\x80b"


@pytest.mark.parametrize(
    "pickled",
    [SURROGATE, b"}(" + SURROGATE + b"K\x01u", b"\x8a\x0c" + bytes(11) + b"\x01", b"]" + SURROGATE + b"a"],
)
def test_open_with_a_value_that_no_card_can_hold_refuses_it(tmp_path, pickled):
    path = zip_checkpoint(tmp_path / "model.pth", _metrics(b"}(" + text("a") + pickled + b"u"))

    with pytest.raises(UnsupportedCheckpoint, match="plain values"):
        read(path)


@pytest.mark.parametrize("module", ["ev\ud800il", "e" * 1_000_000, "a\x1b[2Jb"])
def test_refusal_of_a_global_quotes_its_name_in_short_ascii(module):
    data = module.encode("utf-8", "surrogatepass")
    pickled = b"\x80\x04X" + struct.pack("<I", len(data)) + data + text("system") + b"\x93."

    with pytest.raises(UnsafeCheckpoint) as raised:
        interpret(io.BytesIO(pickled))

    line = error_event(raised.value)
    assert len(line) < 1000
    assert raised.value.detail.isascii()
    assert raised.value.detail.isprintable()


def test_error_text_is_short_and_can_be_sent():
    error = CorruptCheckpoint("\ud800" * 5000, expected="é" * 5000, got="x\udfffy")

    assert error_event(error)
    assert error.detail.startswith("\\ud800")
    assert len(error.detail) == 1000
    assert (error.expected, error.got) == ("é" * 1000, "x\\udfffy")


def test_arrays_read_a_storage_once_however_many_tensors_share_it(tmp_path, monkeypatch):
    state = b"}(" + b"".join(
        text(f"t{index}") + tensor(str(index % 2), 1000, (1,), (1,), index) for index in range(50)
    )
    path = zip_checkpoint(
        tmp_path / "model.pth", document(b"}", state + b"u"), _0=bytes(4000), _1=bytes(4000)
    )
    read_keys = []
    storage_of = ZipContainer.storage

    def counted(self, ref):
        read_keys.append(ref.key)
        return storage_of(self, ref)

    monkeypatch.setattr(ZipContainer, "storage", counted)
    with open_checkpoint(path) as checkpoint:
        names = list(checkpoint.arrays())

    assert read_keys == ["0", "1"]
    assert names == [f"t{index}" for index in range(50)]


SEED_PICKLES = [
    document(name(CONFIG) + b")\x81}" + text("input_dim") + b"K\x05sb"),
    document(
        call("numpy.core.multiarray.scalar", call("numpy.dtype", text("f8"), b"\x89", b"\x88"), text("x"))
    ),
    pickle.dumps({"model_state_dict": {}, "config": {"a": [1, 2.5, None, "x"]}}, protocol=4),
    pickle.dumps([{"a": (1, 2)}, {1, 2}], protocol=2),
]


@given(
    seed=st.sampled_from(SEED_PICKLES),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=12),
    cut=st.integers(0, 400),
)
def test_interpret_of_any_bytes_either_succeeds_or_fails_as_an_export_error(seed, edits, cut):
    data = bytearray(seed)
    for position, value in edits:
        data[position % len(data)] = value

    with suppress(ExportError):
        interpret(io.BytesIO(bytes(data[: max(1, len(data) - cut)])))


@given(st.binary(max_size=200))
def test_interpret_of_random_operations_never_calls_anything(data):
    codes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    stream = b"".join(codes[byte % len(codes)] for byte in data)

    with suppress(ExportError):
        interpret(io.BytesIO(stream))
