"""Memory of the deployment's processes on this machine, and of its GPUs where there are any."""

from collections.abc import Iterable, Mapping

import psutil
import pynvml

from control_plane.telemetry.metrics import GPU_MEMORY_TOTAL, GPU_MEMORY_USED, PROCESS_MEMORY


def measure_memory(processes: Mapping[str, int]) -> dict[str, int]:
    """Resident bytes by name, for `processes` (name to pid); the children of each count under `<name>_children`.

    A process that has gone meanwhile is left out. Triton's Python backend runs one child for each model instance, so
    `triton_children` is what the loaded models take.
    """
    resident: dict[str, int] = {}
    for name, pid in processes.items():
        try:
            process = psutil.Process(pid)
            resident[name] = process.memory_info().rss
            children = _resident_sum(process.children(recursive=True))
        except psutil.Error:
            continue
        if children:
            resident[f"{name}_children"] = children
    for name, size_bytes in resident.items():
        PROCESS_MEMORY.labels(name).set(size_bytes)
    return resident


def measure_gpus() -> None:
    """Sets the GPU gauges; does nothing where there is no NVIDIA driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
            GPU_MEMORY_USED.labels(str(index)).set(memory.used)
            GPU_MEMORY_TOTAL.labels(str(index)).set(memory.total)
    finally:
        pynvml.nvmlShutdown()


def _resident_sum(processes: Iterable[psutil.Process]) -> int:
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total
