"""The embedded Redis and Triton: ports, readiness, restarts, data kept, nothing left."""

import asyncio
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import tritonclient.grpc as triton_grpc
from redis import Redis
from redis.exceptions import RedisError

from control_plane.embedded import ports
from control_plane.embedded.errors import PortTaken
from control_plane.embedded.process import ChildState
from control_plane.embedded.redis import RedisOptions, RedisServer
from control_plane.embedded.triton import TritonOptions, TritonServer
from tests.support.embedded import is_alive, model_processes, processes_of, running_redis, running_triton
from tests.support.repository import write_identity_like_model
from tests.support.server import wait_until


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that something else listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def _kill_and_wait(server: TritonServer | RedisServer) -> None:
    restarts = server.child.restarts
    os.kill(server.child.pid or 0, signal.SIGKILL)
    wait_until(
        lambda: server.child.restarts == restarts + 1 and server.child.state is ChildState.RUNNING,
        timeout_s=30,
        what=f"a restart; log:\n{server.child.log_tail()}",
    )


def _regions(server: TritonServer) -> list[str]:
    prefix = server.region_prefix
    return [path.name for path in Path("/dev/shm").iterdir() if prefix in path.name]


def test_free_ports_are_different_and_below_the_ephemeral_range() -> None:
    lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = ports.free_ports(20)
    assert len(set(found)) == 20
    assert all(1024 <= port < lowest_ephemeral and ports.is_free(port) for port in found)


def test_listen_on_a_taken_port_says_what_to_do(taken_port: int) -> None:
    assert not ports.is_free(taken_port)
    with pytest.raises(
        PortTaken, match=rf"127\.0\.0\.1:{taken_port} can't be listened on.*API_PORT.* 0 takes a free one"
    ):
        ports.listen("127.0.0.1", taken_port)


def test_listen_on_port_zero_takes_a_free_one() -> None:
    with ports.listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0
        assert os.get_inheritable(listener.fileno())


def test_redis_answers_on_loopback_with_an_append_only_file(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as client:
        assert client.ping()
        configuration = client.config_get("*")
    assert (configuration["appendonly"], configuration["appendfsync"]) == ("yes", "everysec")
    assert (configuration["bind"], configuration["unixsocket"]) == ("127.0.0.1", "")


def test_redis_killed_comes_back_at_its_port_with_its_data(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        url = server.url
        with Redis.from_url(url) as client:
            for number in range(100):
                client.incrby("sum", number)
            _kill_and_wait(server)
            assert server.url == url
            assert client.get("sum") == b"4950"
    with running_redis(tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.get("sum") == b"4950"
    assert processes_of(tmp_path) == []


async def test_redis_on_a_taken_port_says_so(tmp_path: Path, taken_port: int) -> None:
    with pytest.raises(PortTaken, match=f"Redis can't listen on 127.0.0.1:{taken_port}"):
        await RedisServer(RedisOptions(port=taken_port), data_dir=tmp_path).start()


async def test_redis_twenty_starts_leave_nothing(tmp_path: Path) -> None:
    async def once() -> None:
        async with RedisServer(RedisOptions(), data_dir=tmp_path) as server:
            assert server.child.pid is not None

    await once()
    before = _held()
    for _ in range(20):
        await once()
    _assert_no_more_than(before)


def test_redis_down_is_an_error_of_the_client_only_while_down(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server, Redis.from_url(server.url) as client:
        client.set("key", "value")
        _kill_and_wait(server)
        _eventually(lambda: client.get("key") == b"value", RedisError)


def test_triton_serves_http_grpc_and_metrics_on_loopback(triton_server: TritonServer) -> None:
    with triton_grpc.InferenceServerClient(triton_server.grpc_url) as client:
        assert client.is_server_ready()
        assert client.get_server_metadata().version == "2.51.0"
    assert httpx.get(f"{triton_server.http_url}/v2/health/ready").status_code == 200
    assert "nv_cpu_memory_used_bytes" in httpx.get(triton_server.metrics_url).text
    process = psutil.Process(triton_server.child.pid)
    listening = [
        entry.laddr for entry in process.net_connections("tcp") if entry.status == psutil.CONN_LISTEN
    ]
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    chosen = triton_server.ports
    assert {address.port for address in listening} == {chosen.http, chosen.grpc, chosen.metrics}


def test_triton_killed_comes_back_at_its_ports_without_leftovers(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_identity_like_model(repository, "tiny", "v1")
    with running_triton(tmp_path / "data", repository) as server:
        with triton_grpc.InferenceServerClient(server.grpc_url) as client:
            client.load_model("tiny-v1")
            (orphan,) = model_processes(server)
            before, regions = server.ports, _regions(server)
            assert len(regions) == 1
            _kill_and_wait(server)
            assert server.ports == before
            assert not is_alive(orphan)
            assert _regions(server) == []
            _eventually(lambda: client.load_model("tiny-v1") is None, triton_grpc.InferenceServerException)
            assert client.is_model_ready("tiny-v1")
        assert len(_regions(server)) == 1
    assert _regions(server) == []
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("which", ["http_port", "grpc_port", "metrics_port"])
async def test_triton_on_a_taken_port_says_so(tmp_path: Path, taken_port: int, which: str) -> None:
    options = TritonOptions(model_repository=tmp_path / "models", **{which: taken_port})
    with pytest.raises(PortTaken, match=f"Triton can't listen on 127.0.0.1, port {taken_port}: in use"):
        await TritonServer(options, data_dir=tmp_path).start()
    assert processes_of(tmp_path) == []


async def test_triton_port_lost_in_a_race_tries_another(tmp_path: Path, taken_port: int) -> None:
    chosen = iter([[taken_port, *ports.free_ports(2)], ports.free_ports(3)])
    server = TritonServer(
        TritonOptions(model_repository=tmp_path / "models"),
        data_dir=tmp_path,
        choose_ports=lambda _count, **_: next(chosen),
    )
    async with server:
        assert taken_port not in (server.ports.http, server.ports.grpc, server.ports.metrics)


async def test_triton_three_starts_leave_nothing(tmp_path: Path) -> None:
    options = TritonOptions(model_repository=tmp_path / "models", exit_timeout_s=2)

    async def once() -> None:
        async with TritonServer(options, data_dir=tmp_path):
            pass

    await once()
    before = _held()
    for _ in range(2):
        await once()
    _assert_no_more_than(before)
    assert processes_of(tmp_path) == []


async def test_triton_stop_with_a_killed_model_process_ends_in_time(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_identity_like_model(repository, "tiny", "v1")
    async with TritonServer(
        TritonOptions(model_repository=repository, exit_timeout_s=2), data_dir=tmp_path / "data"
    ) as server:
        with triton_grpc.InferenceServerClient(server.grpc_url) as client:
            await asyncio.to_thread(client.load_model, "tiny-v1")
        for pid in model_processes(server):
            os.kill(pid, signal.SIGKILL)
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 10
    assert processes_of(tmp_path) == []


def _assert_no_more_than(before: tuple[int, int, int]) -> None:
    after = _held()
    assert all(now <= then for now, then in zip(after, before, strict=True)), f"{before} became {after}"


def _held() -> tuple[int, int, int]:
    """Open files, threads and children of this process, without what earlier tests left to the garbage collector."""
    gc.collect()
    files = len(list(Path("/proc/self/fd").iterdir()))
    # The event loop's executor keeps its threads; they are bounded and not ours.
    threads = sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())
    return files, threads, len(psutil.Process().children())


def _eventually(attempt: Callable[[], bool], error: type[Exception]) -> None:
    def succeeded() -> bool:
        try:
            return attempt()
        except error:
            return False

    wait_until(succeeded, timeout_s=20, what="an answer after the restart")
