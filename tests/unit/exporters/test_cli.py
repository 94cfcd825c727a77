"""The command line and the subprocess protocol, in real processes."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from exporters.card import read_card
from exporters.cli import main
from exporters.limits import DEFAULT_LIMITS
from exporters.pipeline import export
from exporters.protocol import decode_request
from tests.support.agents import agent_bytes, write_folder
from tests.support.checkpoints import random_state, save_checkpoint
from tests.unit.exporters.crafted import call, document, text, zip_checkpoint

REPOSITORY_ROOT = Path(__file__).parents[3]
STAGES = ["reading", "building", "exporting", "verifying", "publishing"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "cnn_lstm_hybrid-v1.pth", random_state())


@pytest.fixture(scope="module")
def published(checkpoint, tmp_path_factory) -> Path:
    repository = tmp_path_factory.mktemp("published") / "repository"
    export(decode_request(request(checkpoint, repository).encode()))
    return repository


@pytest.fixture
def repository(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "repository"))


def exporters(*arguments: object, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "exporters", *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        cwd=REPOSITORY_ROOT,
        timeout=120,
    )


def request(checkpoint: Path, repository: Path, /, **changes: object) -> str:
    values = {
        "model_type": "cnn_lstm_hybrid", "version": "v1", "file_path": str(checkpoint), "repository": str(repository),
        "config": None, "format": None, "device": None, "overwrite": False, "normalization": None,
        "max_batch_size": None, "instance_count": None,
    }  # fmt: skip
    return json.dumps(values | changes)


def run(given: str, *arguments: object) -> tuple[int, list[dict]]:
    done = exporters("run", *arguments, given=given)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


def in_process(*arguments: object) -> Done:
    """A command in this process, without its limits, which would outlast it."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr("exporters.cli.apply_limits", lambda _: None)
        try:
            main([*map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
    return Done(exit_code=int(code or 0), stdout=out.getvalue(), stderr=err.getvalue())


def modules_after(*arguments: object) -> set[str]:
    return modules_after_all(arguments)


def modules_after_all(*commands: tuple[object, ...]) -> set[str]:
    """The modules that are imported once these commands ran in one process."""
    code = (
        "import sys, io, contextlib, json\nfrom exporters.cli import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main(arguments)\nprint(' '.join({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([[*map(str, command)] for command in commands])],
        capture_output=True,
        text=True,
        cwd=REPOSITORY_ROOT,
    )
    return set(done.stdout.split())


COMMANDS = ((), ("hybrid",), ("rl_ensemble",), ("ready-made",), ("check",), ("run",), ("publish-missing",))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_each_command(command):
    done = in_process(*command, "--help")

    assert done.exit_code == 0
    assert "Usage: " in done.stdout
    if command not in ((), ("publish-missing",)):
        assert "Example" in done.stdout


def test_help_imports_no_torch():
    for command in ((), ("hybrid",)):
        done = exporters(*command, "--help")
        assert done.returncode == 0
        assert "Usage: python -m exporters" in done.stdout
    assert modules_after_all(*((*command, "--help") for command in COMMANDS)).isdisjoint(
        {"torch", "onnx", "onnxruntime", "grpc", "numpy"}
    )


def test_no_command_is_a_usage_error_that_shows_the_help():
    done = in_process()

    assert done.exit_code == 2
    assert "Examples:" in done.stdout + done.stderr


def test_hybrid_exports_with_values_set_on_the_command_line(checkpoint, tmp_path):
    done = exporters(
        "hybrid", checkpoint, "--version", "v2", "--repository", tmp_path / "r", "--set", "mc_dropout_samples=7",
        "--set", 'class_names=["a","b","c"]', "--max-batch-size", 8, "--instances", 2, "--device", "cpu",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "Published cnn_lstm_hybrid-v2: onnx" in done.stdout
    card = read_card(tmp_path / "r" / "cnn_lstm_hybrid-v2")
    assert (card.mc_dropout.samples, card.class_names, card.max_batch_size, card.instance_count) == (
        7,
        ("a", "b", "c"),
        8,
        2,
    )
    assert [line for line in done.stderr.splitlines() if line.startswith("cnn_lstm_hybrid-v2: ")] == [
        f"cnn_lstm_hybrid-v2: {stage}" for stage in STAGES
    ]


def test_commands_for_people_run_within_the_default_limits(monkeypatch):
    applied = []
    monkeypatch.setattr("exporters.cli.apply_limits", applied.append)
    for command in ("hybrid", "rl_ensemble", "ready-made", "check", "publish-missing", "run"):
        with pytest.raises(SystemExit):
            main([command, "--no-such-option"])

    assert applied == [DEFAULT_LIMITS] * 5  # `run` sets its own


def test_hybrid_again_says_that_nothing_changed(checkpoint, repository):
    done = in_process("hybrid", checkpoint, "--version", "v1", "--repository", repository)

    assert done.exit_code == 0
    assert "published already" in done.stdout


FAILURES = {
    "conflict": (["--version", "v1", "--max-batch-size", 3], 18, "overwrit"),
    "unknown_key": (["--version", "v2", "--set", "colour=red"], 15, "colour"),
    "no_separator": (["--version", "v2", "--set", "colour"], 15, "KEY=VALUE"),
    "version": (["--version", "../v2"], 15, "version"),
    "mismatch": (["--version", "v2", "--set", "input_dim=13"], 14, "13"),
    "tensorrt": (["--version", "v2", "--tensorrt"], 15, "gpu"),
    "normalization": (["--version", "v2", "--normalization", "/nowhere.json"], 15, "nowhere.json"),
    "config": (["--version", "v2", "--config", "/nowhere.json"], 15, "nowhere.json"),
    "format": (["--version", "v2", "--format", "keras"], 2, "keras"),
    "no_version": ([], 2, "--version"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_hybrid_that_fails_says_why_and_what_to_do_without_a_stack_trace(checkpoint, repository, case):
    arguments, code, named = FAILURES[case]

    done = in_process("hybrid", checkpoint, "--repository", repository, *arguments)

    assert done.exit_code == code
    assert named in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    if code != 2:
        assert "error: " in done.stderr
        assert sorted(entry.name for entry in repository.iterdir()) == [".staging", "cnn_lstm_hybrid-v1"]


def test_hybrid_of_a_hostile_checkpoint_names_what_it_tried(tmp_path):
    marker = tmp_path / "marker"
    path = zip_checkpoint(tmp_path / "model.pth", document(call("os.system", text(f"touch {marker}"))))

    done = in_process("hybrid", path, "--version", "v1", "--repository", tmp_path / "r")

    assert done.exit_code == 10
    assert "os.system" in done.stderr
    assert not marker.exists()


def test_check_of_a_whole_repository_finds_it_in_order(repository):
    done = exporters("check", repository)

    assert done.returncode == 0
    assert done.stdout.startswith("ok      cnn_lstm_hybrid-v1  onnx")


def test_check_without_running_imports_no_runtime(repository):
    assert modules_after("check", repository, "--no-run").isdisjoint({"torch", "onnx", "onnxruntime"})


DAMAGE = {
    "artefact": ("1/model.onnx", b"x", "1/model.onnx was changed"),
    "config": ("config.pbtxt", b'name: "x"', "config.pbtxt was changed"),
    "syntax": ("config.pbtxt", b"nonsense", "isn't a Triton model configuration"),
    "card": ("model.json", b"{}", "isn't a model card"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_check_of_a_damaged_version_names_the_damage(repository, case):
    file, data, named = DAMAGE[case]
    (repository / "cnn_lstm_hybrid-v1" / file).write_bytes(data)

    done = in_process("check", repository / "cnn_lstm_hybrid-v1")

    assert done.exit_code == 16
    assert "FAILED  cnn_lstm_hybrid-v1" in done.stdout
    assert named in done.stdout


def test_check_of_a_renamed_folder_names_both(repository):
    (repository / "cnn_lstm_hybrid-v1").rename(repository / "cnn_lstm_hybrid-v9")

    assert "the folder is named cnn_lstm_hybrid-v9" in in_process("check", repository, "--no-run").stdout


def test_check_of_an_artefact_that_is_not_the_cards_finds_it_by_running(repository):
    folder = repository / "cnn_lstm_hybrid-v1"
    card = read_card(folder)
    wrong = msgspec.structs.replace(card, outputs=card.outputs[:-1])
    (folder / "model.json").write_bytes(msgspec.json.encode(wrong))

    assert "isn't one of the model's" in in_process("check", folder).stdout


def test_agents_are_exported_by_the_command_and_by_the_protocol(tmp_path):
    folder = write_folder(tmp_path / "agents", {"a": agent_bytes(), "b": agent_bytes()})
    options = ("--version", "v1", "--repository", tmp_path / "r", "--set", "q_temperature=2")

    done = in_process("rl_ensemble", folder, *options)
    assert done.exit_code == 0, done.stderr
    assert "Published rl_ensemble-v1: onnx" in done.stdout
    assert read_card(tmp_path / "r" / "rl_ensemble-v1").config["q_temperature"] == 2

    asked = json.dumps(
        {
            "model_type": "rl_ensemble",
            "version": "v2",
            "file_path": str(folder),
            "repository": str(tmp_path / "r"),
            "config": {"weights_policy": {"policy": "fixed"}},
        }
    )
    events = [json.loads(line) for line in exporters("run", given=asked).stdout.splitlines()]
    assert [event.get("stage") for event in events[:-1]] == STAGES
    assert events[-1]["card"]["config"]["weights_policy"] == {"policy": "fixed"}


def test_check_of_nothing_says_what_it_expects(tmp_path):
    assert in_process("check", tmp_path / "nowhere").exit_code == 16
    assert "holds no versions" in in_process("check", tmp_path).stdout


def test_publish_missing_publishes_what_is_missing_and_then_nothing(checkpoint, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(checkpoint, folder)
    (folder / "notes.txt").write_text("x")
    arguments = ("publish-missing", "--checkpoints", folder, "--repository", tmp_path / "r")

    first = exporters(*arguments)
    card = (tmp_path / "r" / "cnn_lstm_hybrid-v1" / "model.json").read_bytes()
    second = in_process(*arguments)

    assert (first.returncode, second.exit_code) == (0, 0), first.stderr
    assert "Published cnn_lstm_hybrid-v1" in first.stdout
    assert second.stdout == "cnn_lstm_hybrid-v1 is published.\n"
    assert (tmp_path / "r" / "cnn_lstm_hybrid-v1" / "model.json").read_bytes() == card
    assert modules_after(*arguments).isdisjoint({"torch", "onnx", "onnxruntime", "grpc", "numpy"})


def test_publish_missing_of_a_changed_checkpoint_publishes_it_anew(checkpoint, repository, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    arguments = ("publish-missing", "--checkpoints", folder, "--repository", repository)
    shutil.copy(checkpoint, folder)
    assert "Published" not in in_process(*arguments).stdout
    save_checkpoint(folder / checkpoint.name, random_state(seed=1))

    assert "Published" in in_process(*arguments).stdout


def test_run_reports_stages_and_the_card(checkpoint, tmp_path):
    code, events = run(request(checkpoint, tmp_path / "r"))

    assert code == 0
    assert [event["stage"] for event in events[:-1]] == STAGES
    assert [event["progress"] for event in events[:-1]] == sorted(event["progress"] for event in events[:-1])
    assert events[-1]["event"] == "result"
    assert events[-1]["status"] == "published"
    assert events[-1]["triton_model"] == "cnn_lstm_hybrid-v1"
    assert events[-1]["card"] == json.loads(
        (tmp_path / "r" / "cnn_lstm_hybrid-v1" / "model.json").read_bytes()
    )


def test_run_of_the_same_again_is_unchanged(checkpoint, repository):
    code, events = run(request(checkpoint, repository))

    assert (code, events[-1]["status"], len(events)) == (0, "unchanged", 2)


RUN_FAILURES = {
    "conflict": ({"max_batch_size": 3}, 18, "version_conflict"),
    "missing": ({"file_path": "/nowhere/model.pth", "version": "v2"}, 11, "corrupt_checkpoint"),
    "config": ({"config": {"colour": 1}, "version": "v2"}, 15, "invalid_config"),
    "mismatch": ({"config": {"input_dim": 13}, "version": "v2"}, 14, "config_mismatch"),
    "key": ({"colour": 1}, 15, "invalid_config"),
    "type": ({"overwrite": "yes"}, 15, "invalid_config"),
    "format": ({"format": "keras"}, 15, "invalid_config"),
    "repository": ({"repository": "/proc/nowhere"}, 19, "export_failed"),
}


@pytest.mark.parametrize("case", RUN_FAILURES)
def test_run_that_fails_ends_in_one_error_event_and_its_exit_code(checkpoint, repository, case):
    changes, exit_code, error_code = RUN_FAILURES[case]

    code, events = run(request(checkpoint, repository, **changes))

    assert code == exit_code
    assert [event["event"] for event in events if event["event"] != "stage"] == ["error"]
    assert events[-1].keys() == {"event", "code", "detail", "expected", "got", "remedy"}
    assert events[-1]["code"] == error_code
    assert events[-1]["detail"]


@pytest.mark.parametrize("given", ["", "{", "[]", "null", "[" * 200_000, "\x00", '{"model_type": 1}'])
def test_run_of_something_else_is_an_invalid_configuration(given):
    code, events = run(given)

    assert (code, events[-1]["code"]) == (15, "invalid_config")


def test_run_of_a_file_beyond_its_limit_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    with path.open("wb") as stream:
        stream.truncate((1 << 20) + 1)

    code, events = run(request(path, tmp_path / "r"), "--max-file-mb", 1)

    assert (code, events[-1]["code"], events[-1]["got"]) == (13, "file_too_large", "1,048,577 bytes")


def test_run_beyond_its_memory_ends_in_an_error_event_and_leaves_nothing(checkpoint, tmp_path):
    given = request(checkpoint, tmp_path / "r", max_batch_size=4096, config={"sequence_length": 4096})

    code, events = run(given, "--memory-limit-mb", 512)

    assert (code, events[-1]["code"]) == (19, "export_failed")
    assert "more memory" in events[-1]["detail"]
    assert events[-1]["expected"] == "at most 512 MB"
    assert not (tmp_path / "r").exists()


def test_run_beyond_its_processor_time_ends_in_an_error_event_and_leaves_nothing(checkpoint, tmp_path):
    given = request(checkpoint, tmp_path / "r", max_batch_size=4096, config={"sequence_length": 4096})

    code, events = run(given, "--cpu-limit-s", 2)

    assert (code, events[-1]["code"]) == (19, "export_failed")
    assert "processor time" in events[-1]["detail"]
    assert not (tmp_path / "r").exists()


def _start(checkpoint: Path, repository: Path, stage: str) -> subprocess.Popen[str]:
    """Starts a slow export and waits until it reaches `stage`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "exporters", "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY_ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request(checkpoint, repository, max_batch_size=2048, config={"sequence_length": 512}))
    process.stdin.close()
    while json.loads(process.stdout.readline())["stage"] != stage:
        pass
    return process


@pytest.mark.parametrize("stage", ["exporting", "verifying"])
def test_run_killed_half_way_leaves_no_version_and_the_next_export_cleans_up(checkpoint, tmp_path, stage):
    repository = tmp_path / "r"
    with _start(checkpoint, repository, stage) as process:
        process.kill()

    assert [entry.name for entry in repository.iterdir()] == [".staging"]
    export(decode_request(request(checkpoint, repository).encode()))
    assert (repository / "cnn_lstm_hybrid-v1" / "model.json").exists()
    assert [entry.name for entry in (repository / ".staging").iterdir()] == []


def test_run_terminated_half_way_cleans_up_itself(checkpoint, tmp_path):
    repository = tmp_path / "r"
    with _start(checkpoint, repository, "verifying") as process:
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)

    assert process.returncode == 128 + signal.SIGTERM
    assert not repository.exists()


def test_run_whose_reader_is_gone_still_publishes_or_leaves_nothing(checkpoint, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "exporters", "run"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPOSITORY_ROOT,
    )  # fmt: skip
    process.stdout.close()
    process.stdin.write(request(checkpoint, tmp_path / "r"))
    process.stdin.close()
    process.wait(timeout=60)

    assert [name for name in os.listdir(tmp_path / "r") if name != ".staging"] in ([], ["cnn_lstm_hybrid-v1"])  # noqa: PTH208
    assert [entry.name for entry in (tmp_path / "r" / ".staging").iterdir()] == []


def test_decode_of_the_contracts_request_takes_every_key():
    decoded = decode_request(request(Path("/m.pth"), Path("/r"), device="gpu", format="onnx").encode())

    assert (decoded.device, decoded.format, decoded.triton_model) == ("gpu", "onnx", "cnn_lstm_hybrid-v1")
