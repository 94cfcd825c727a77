"""Tuning on the real Triton: the card, the workers that follow, the search's temporary models, the command."""

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from control_plane.errors import ModelNotReady, VersionConflict
from control_plane.inference.served import limits_of
from control_plane.models.card import read_card
from control_plane.models.tuning.configurations import Configuration, best_trial
from control_plane.models.tuning.search import PREFIX, ConfigurationSearch, copy_version
from control_plane.models.tuning.tuner import Tuner, TuningRequest, tuning_of
from control_plane.models.warmup import WarmupStatus, WarmupTarget
from tests.integration.models.conftest import StartWorker
from tests.support.model_worker import ModelWorker, eventually
from tests.support.repository import marker_of, write_identity_like_model

QUICK = TuningRequest(objective_p95_ms=5_000, seconds=1)
WORK = 20


def tuner_of(worker: ModelWorker) -> Tuner:
    return Tuner(
        settings=worker.settings,
        store=worker.store,
        infer=worker.triton.infer,
        registry=worker.registry,
        cache=worker.cache,
    )


def search_of(worker: ModelWorker) -> ConfigurationSearch:
    return ConfigurationSearch(
        settings=worker.settings,
        triton=worker.triton,
        registry=worker.registry,
        cache=worker.cache,
        tuner=tuner_of(worker),
    )


async def test_tuning_at_warmup_reaches_every_worker_and_touches_nothing_else(
    start_worker: StartWorker, repository: Path
) -> None:
    folder = write_identity_like_model(repository, "tuned", "v1", work=WORK, max_batch_size=8)
    document = json.loads((folder / "model.json").read_text())
    first, second = await start_worker(), await start_worker()
    targets = [WarmupTarget(model_type="tuned", version=version) for version in ("latest", "v9")]
    good, missing = await first.operations.warmup.warm_up(targets, tuning=QUICK)
    assert (good.status, missing.status) == (WarmupStatus.WARMED, WarmupStatus.NOT_FOUND)
    assert good.tuning is not None
    tuning = good.tuning.tuning
    assert tuning is not None
    assert 1 <= tuning.rows_per_call <= 8
    assert {point.size.rows for point in good.tuning.curve.points} >= {1, 2, 4, 8}
    changed = json.loads((folder / "model.json").read_text())
    assert changed.pop("serving")["tuning"]["rows_per_call"] == tuning.rows_per_call
    assert changed == document

    async def follows() -> bool:
        limits = limits_of(second.version("tuned", "v1").card, second.settings)
        return (limits.max_rows, limits.calls_in_flight) == (tuning.rows_per_call, tuning.calls_in_flight)

    await eventually(follows, timeout_s=5, what="the other worker has the tuning")
    assert await second.use(second.version("tuned", "v1")) == marker_of("tuned", "v1")


async def test_tuning_that_no_size_meets_stores_nothing(start_worker: StartWorker, repository: Path) -> None:
    worker = await start_worker()
    model = worker.version("echo", "v1.0")
    before = (model.folder / "model.json").read_bytes()
    request = TuningRequest(objective_p95_ms=0.001, seconds=1)
    with pytest.raises(ModelNotReady):
        await tuner_of(worker).tune(model, request)
    await worker.use(model)
    outcome = await tuner_of(worker).tune(model, request)
    assert outcome.tuning is None
    assert (model.folder / "model.json").read_bytes() == before


async def test_tuning_of_a_version_that_was_replaced_is_not_kept(
    start_worker: StartWorker, repository: Path
) -> None:
    worker = await start_worker()
    model = worker.version("echo", "v1.1")
    await worker.use(model)
    curve = await tuner_of(worker).measure(model, QUICK)
    assert curve.chosen is not None
    write_identity_like_model(repository, "echo", "v1.1", revision=1)
    with pytest.raises(VersionConflict):
        await tuner_of(worker).keep(model, tuning_of(curve.chosen, QUICK))
    assert read_card(model.folder).serving.tuning is None


async def test_search_leaves_nothing_behind_and_applies_what_is_asked(
    start_worker: StartWorker, repository: Path
) -> None:
    write_identity_like_model(repository, "searched", "v1", work=WORK, max_batch_size=4)
    worker = await start_worker()
    model = worker.version("searched", "v1")
    await worker.use(model)
    search = search_of(worker)
    # What a killed search leaves.
    leftover = repository / f"{PREFIX}searched-v1.dead"
    copy_version(model.folder, leftover, b"name: 'never loaded'")
    plan = await search.plan(model, cores=2)
    assert [(one.instance_count, one.intra_op_threads) for one in plan] == [(1, 1), (1, 2), (2, 1)]
    two = Configuration(instance_count=2, intra_op_threads=1)
    seen: set[str] = set()

    async def watch() -> None:
        while True:
            held = {name for name in await worker.ready_in_triton() if name.startswith(PREFIX)}
            if held and not seen:
                await asyncio.gather(*(worker.triton.unload(name) for name in held))  # a trial that fails
            seen.update(held)
            assert worker.registry.keys.isdisjoint(seen)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    async with tuner_of(worker).turn():
        trials = await search.try_all(model, [plan[0], plan[1], two], QUICK)
    watching.cancel()
    assert len(seen) == 2, "the reconciler left the temporary models alone"
    assert best_trial(trials) in trials
    assert not list(repository.glob(f"{PREFIX}*"))  # noqa: ASYNC240  a test
    assert not [name for name in await worker.ready_in_triton() if name.startswith(PREFIX)]
    assert trials[1].curve is None
    assert trials[1].failure
    assert trials[2].curve is not None
    assert trials[2].curve.chosen is not None

    applied = await search.apply(model, two, tuning_of(trials[2].curve.chosen, QUICK))
    config = (model.folder / "config.pbtxt").read_bytes()
    assert b"count: 2" in config
    assert applied.card.instance_count == 2
    assert applied.card.checksums["config.pbtxt"] == hashlib.sha256(config).hexdigest()
    assert applied.card.serving.tuning is not None
    assert await worker.use(applied) == marker_of("searched", "v1")


async def test_command_tunes_what_is_loaded_and_prints_it(
    start_worker: StartWorker, repository: Path, tmp_path: Path, redis_key_prefix: str
) -> None:
    worker = await start_worker()
    await worker.use(worker.version("echo", "v1.5"))
    settings: dict[str, Any] = {
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": worker.settings.redis.port,
        "TRITON_GRPC_URL": worker.settings.triton.grpc_url,
        "MODEL_SERVING__REDIS__KEY_PREFIX": redis_key_prefix,
        "MODEL_SERVING__TRITON__MODEL_REPOSITORY": repository,
        "MODEL_SERVING__EMBEDDED__DATA_DIR": tmp_path,
    }
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control_plane", "tune", "echo"),
        *("--seconds", "1", "--p95-ms", "5000", "--json"),
        env={**os.environ, **{name: str(value) for name, value in settings.items()}},  # noqa: TID251
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await command.communicate()
    assert command.returncode == 0
    document = json.loads(output)
    assert (document["model"], document["is_stored"]) == ("echo-v1.5", True)
    tuning = read_card(repository / "echo-v1.5").serving.tuning
    assert tuning is not None
    assert tuning.rows_per_call == document["chosen"]["rows"]
    assert (tmp_path / "tuning/echo-v1.5.svg").is_file()
