"""Command lines and configuration texts of the embedded services."""

from pathlib import Path

from control_plane.embedded.redis import RedisOptions, redis_configuration
from control_plane.embedded.triton import TritonOptions, TritonPorts, triton_arguments

_PORTS = TritonPorts(http=1, grpc=2, metrics=3)


def _arguments(options: TritonOptions) -> list[str]:
    return triton_arguments(
        options,
        _PORTS,
        repository=options.model_repository.absolute(),
        backends=Path("/data/backends"),
        caches=Path("/wheel/caches"),
        region_prefix="mine_",
    )


def test_triton_arguments_by_default_listen_on_loopback_only() -> None:
    arguments = _arguments(TritonOptions(model_repository=Path("/models")))
    for service, port in (("http", 1), ("grpc", 2), ("metrics", 3)):
        assert f"--{service}-address=127.0.0.1" in arguments
        assert f"--{service}-port={port}" in arguments


def test_triton_arguments_by_default_control_models_explicitly() -> None:
    arguments = _arguments(TritonOptions(model_repository=Path("/models")))
    assert "--model-control-mode=explicit" in arguments
    assert "--model-repository=/models" in arguments
    assert "--backend-config=python,shm-region-prefix-name=mine_" in arguments
    assert not any(argument.startswith("--cache") for argument in arguments)


def test_triton_arguments_with_cache_and_extras_pass_them_on() -> None:
    extra = "--grpc-restricted-protocol=model-repository:admin-key=secret"
    options = TritonOptions(
        model_repository=Path("models"), response_cache_bytes=1024, extra_arguments=(extra,), exit_timeout_s=9
    )
    arguments = _arguments(options)
    assert "--cache-config=local,size=1024" in arguments
    assert "--cache-directory=/wheel/caches" in arguments
    assert "--exit-timeout-secs=9" in arguments
    assert arguments[-1] == extra
    assert f"--model-repository={Path('models').absolute()}" in arguments


def test_redis_configuration_keeps_data_and_listens_on_loopback() -> None:
    lines = redis_configuration(RedisOptions(), port=7, folder=Path("/data/redis")).splitlines()
    assert {"bind 127.0.0.1", "port 7", "appendonly yes", "appendfsync everysec", 'dir "/data/redis"'} <= set(
        lines
    )
    assert not any(line.startswith("unixsocket") for line in lines)


def test_redis_configuration_quotes_its_folder() -> None:
    text = redis_configuration(RedisOptions(), port=7, folder=Path('/a"b\\c d'))
    assert 'dir "/a\\"b\\\\c d"\n' in text
