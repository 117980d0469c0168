"""What the machine does while a run goes on: samples by a thread of their own, under the names that MLflow's pages know.

A question to a file system may hang for minutes, so the training never asks.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import psutil

from pipeline.console import LOG

_FIRST_S = 0.5


class Sampler(threading.Thread):
    """Samples processor, memory, disk, network and GPUs every so many seconds; use `take` for the newest."""

    def __init__(self, folder: Path, every_s: float) -> None:
        """folder: on the disk that is looked at. every_s: 0 samples nothing."""
        super().__init__(name="machine-sampler", daemon=True)
        self._folder, self._every_s = folder, every_s
        self._ended = threading.Event()
        self._newest: dict[str, float] = {}

    def take(self) -> dict[str, float]:
        """Return the newest sample, once."""
        newest, self._newest = self._newest, {}
        return newest

    def close(self) -> None:
        """End the sampling; one that hangs is not waited for."""
        self._ended.set()

    def run(self) -> None:
        """Sample until the end."""
        if not self._every_s:
            return
        psutil.cpu_percent()  # a first call only sets the beginning
        begun, gpus, wait_s = psutil.net_io_counters(), _gpus(), _FIRST_S
        while not self._ended.wait(wait_s):
            wait_s = self._every_s
            try:
                found = _host(self._folder) | _network(begun) | _devices(gpus)
            except (OSError, psutil.Error) as error:
                LOG.debug("no sample of the machine: %s", error)
                continue
            # a new dict, never changed: `take` reads it from another thread without a lock
            self._newest = {f"system/{name}": round(float(value), 1) for name, value in found.items()}


def _host(folder: Path) -> dict[str, float]:
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(folder))
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": 100 * memory.used / memory.total,
        "disk_usage_percentage": disk.percent,
        "disk_available_megabytes": disk.free / 1e6,
    }


def _network(begun: Any) -> dict[str, float]:
    now = psutil.net_io_counters()
    # a container without a network has no counters
    if begun is None or now is None:
        return {}
    return {
        "network_receive_megabytes": (now.bytes_recv - begun.bytes_recv) / 1e6,
        "network_transmit_megabytes": (now.bytes_sent - begun.bytes_sent) / 1e6,
    }


def _gpus() -> list[Any]:
    """Return NVIDIA's handles of this machine's GPUs; none without its library or a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError):
        return []
    except pynvml.NVMLError as error:
        LOG.debug("no GPU is sampled: %s", error)
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]


def _devices(gpus: list[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for number, gpu in enumerate(gpus):
        import pynvml

        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
            found[f"gpu_{number}_memory_usage_megabytes"] = memory.used / 1e6
            found[f"gpu_{number}_memory_usage_percentage"] = 100 * memory.used / memory.total
            found[f"gpu_{number}_utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
            found[f"gpu_{number}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000
        # a slice of a GPU does not tell all of these
        except pynvml.NVMLError as error:
            LOG.debug("GPU %d is not sampled whole: %s", number, error)
    return found
