"""Callers of Triton's gRPC port from Python: what "direct Python gRPC" means in the figures.

    python -m benchmarks.grpc_callers '{"url": …, "model": …, "input": …, "outputs": […], "folder": …, "count": …, …}'

`tritonclient` as its documentation shows it: the synchronous client for one caller, the asyncio client with all
callers in one process for more. The files 0 … count-1 of `folder` are .npy arrays with a batch axis, asked in turn;
every output is read as an array. Prints the result as JSON.
"""

import asyncio
import itertools
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import uvloop

from benchmarks.load import LoadResult, result_of


def run_one(options: dict[str, Any]) -> list[float]:
    """One caller on the synchronous client; latencies in milliseconds."""
    arrays, outputs = arrays_of(options), options["outputs"]
    latencies = []
    with tritonclient.grpc.InferenceServerClient(options["url"]) as client:
        until = time.perf_counter() + options["seconds"]
        for array in itertools.cycle(arrays):
            started = time.perf_counter()
            if started > until:
                break
            tensor = tritonclient.grpc.InferInput(options["input"], list(array.shape), "FP32")
            tensor.set_data_from_numpy(array)
            wanted = [tritonclient.grpc.InferRequestedOutput(name) for name in outputs]
            result = client.infer(options["model"], [tensor], outputs=wanted)
            for name in outputs:
                result.as_numpy(name)
            latencies.append(1e3 * (time.perf_counter() - started))
    return latencies


async def run_many(options: dict[str, Any]) -> list[float]:
    """All callers on one asyncio client; latencies in milliseconds."""
    arrays, outputs = itertools.cycle(arrays_of(options)), options["outputs"]
    latencies: list[float] = []
    async with tritonclient.grpc.aio.InferenceServerClient(options["url"]) as client:
        until = time.perf_counter() + options["seconds"]

        async def caller() -> None:
            while (started := time.perf_counter()) < until:
                array = next(arrays)
                tensor = tritonclient.grpc.InferInput(options["input"], list(array.shape), "FP32")
                tensor.set_data_from_numpy(array)
                wanted = [tritonclient.grpc.InferRequestedOutput(name) for name in outputs]
                result = await client.infer(options["model"], [tensor], outputs=wanted)
                for name in outputs:
                    result.as_numpy(name)
                latencies.append(1e3 * (time.perf_counter() - started))

        await asyncio.gather(*(caller() for _ in range(options["connections"])))
    return latencies


def arrays_of(options: dict[str, Any]) -> list[Any]:
    """The arrays to send."""
    return [np.load(Path(options["folder"]) / str(index)) for index in range(options["count"])]


def run(options: dict[str, Any]) -> LoadResult:
    """Runs the load."""
    began_s = time.process_time()
    if options["connections"] == 1:
        latencies = run_one(options)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            latencies = runner.run(run_many(options))
    return result_of(
        latencies,
        generator="tritonclient.grpc" if options["connections"] == 1 else "tritonclient.grpc.aio",
        connections=options["connections"],
        seconds=options["seconds"],
        generator_cpu_s=time.process_time() - began_s,
    )


def main() -> None:
    """Reads the options and prints the result."""
    print(json.dumps(asdict(run(json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
