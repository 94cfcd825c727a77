"""Ten versions, three places, two workers, sixteen callers."""

import asyncio
import threading
from pathlib import Path

import httpx
import tritonclient.grpc

from tests.support.repository import write_identity_like_model
from tests.support.server import Server, running_server, wait_until
from tests.support.traffic import Target, drive

VERSIONS = [f"v{number}" for number in range(10)]
CAPACITY = 3


def held_by_triton(client: tritonclient.grpc.InferenceServerClient) -> list[tuple[str, str]]:
    index = client.get_model_repository_index()
    return [(model.name, model.state) for model in index.models if model.state not in ("", "UNAVAILABLE")]


class IndexWatch(threading.Thread):
    """Looks at Triton's repository index all along."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._url = server.grpc_url
        self.stopping = threading.Event()
        self.most_ready = 0
        self.looks = 0

    def run(self) -> None:
        with tritonclient.grpc.InferenceServerClient(self._url) as client:
            while not self.stopping.wait(0.02):
                held = held_by_triton(client)
                self.looks += 1
                self.most_ready = max(self.most_ready, sum(state == "READY" for _, state in held))


def test_thrash_gives_right_answers_and_keeps_the_bound(folder: Path) -> None:
    settings = {
        "API_WORKERS": "2",
        "MODEL_SERVING__MODEL_CACHE__MAX_MODELS": str(CAPACITY),
        "MODEL_SERVING__API__REQUEST_TIMEOUT_S": "120",
    }
    (folder / "model_repository").mkdir()
    for version in VERSIONS:
        write_identity_like_model(folder / "model_repository", "thrash", version)
    with running_server(folder, settings) as server:
        watch = IndexWatch(server)
        watch.start()
        # A few versions are popular, as in use: Zipf's law. Uniform draws would only multiply the same loads.
        weights = [1 / (rank + 1) ** 2 for rank in range(len(VERSIONS))]
        targets = [Target("thrash", version) for version in VERSIONS]
        tally = asyncio.run(drive(server.url, targets, callers=16, count=2000, weights=weights))
        watch.stopping.set()
        watch.join()

        assert tally.wrong == []
        assert tally.transport_errors == []
        assert dict(tally.statuses) == {200: 2000}, tally.problems[:3]
        assert watch.looks > 50
        assert watch.most_ready <= CAPACITY
        with httpx.Client(base_url=server.url, timeout=60) as api:
            stats: dict[str, object] = {}

            def added_up() -> bool:
                stats.update(api.get("/api/v1/models/cache/stats").json())
                return stats["hits"] + stats["misses"] == 2000  # type: ignore[operator]

            wait_until(added_up, timeout_s=20, what="hits + misses == 2000")
            assert stats["total_models"] <= CAPACITY  # type: ignore[operator]
            assert stats["evictions"] >= len(VERSIONS) - CAPACITY  # type: ignore[operator]
            with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
                ready = {name for name, state in held_by_triton(client) if state == "READY"}
            assert ready == {f"{model['model_type']}-{model['version']}" for model in stats["models"]}  # type: ignore[attr-defined]


def test_least_recently_used_version_leaves_first(folder: Path) -> None:
    (folder / "model_repository").mkdir()
    for version in VERSIONS[:5]:
        write_identity_like_model(folder / "model_repository", "order", version)
    settings = {"MODEL_SERVING__MODEL_CACHE__MAX_MODELS": str(CAPACITY)}
    with running_server(folder, settings) as server, httpx.Client(base_url=server.url, timeout=60) as api:

        def use(version: str) -> None:
            assert api.post("/api/v1/predict", json=Target("order", version).body()).status_code == 200

        def loaded() -> set[str]:
            return {model["version"] for model in api.get("/api/v1/models/cache/stats").json()["models"]}

        for version in ("v0", "v1", "v2", "v0", "v3"):
            use(version)
        assert loaded() == {"v0", "v2", "v3"}
        use("v2")
        use("v4")
        assert loaded() == {"v2", "v3", "v4"}


def test_unused_version_expires(folder: Path) -> None:
    (folder / "model_repository").mkdir()
    write_identity_like_model(folder / "model_repository", "ttl", "v1")
    settings = {"MODEL_SERVING__MODEL_CACHE__TTL_SECONDS": "1"}
    with running_server(folder, settings) as server, httpx.Client(base_url=server.url, timeout=60) as api:
        assert api.post("/api/v1/predict", json=Target("ttl", "v1").body()).status_code == 200

        def expired() -> bool:
            stats = api.get("/api/v1/models/cache/stats").json()
            return stats["expirations"] == 1 and stats["total_models"] == 0

        wait_until(expired, timeout_s=30, what="the version expires")
        assert api.post("/api/v1/predict", json=Target("ttl", "v1").body()).status_code == 200
