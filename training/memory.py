"""Memory: the host's is kept by the process from step to step, and how much a run takes is told.

A step on a CPU makes and drops gigabytes of tensors. By default each large one comes from the system and goes back
to it, page by page, and those pages cost up to a tenth of the step.
"""

from __future__ import annotations

import ctypes

import psutil
import torch

# numbers of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 32 * 2**20
"""What glibc takes for a threshold at most; still larger tensors come and go, and leave no holes."""


def keep() -> bool:
    """Keep what is freed for the next tensor, from now on; returns whether the C library can (glibc does)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, -1))


def used_bytes(device: torch.device) -> int:
    """Return the most that was taken on a GPU so far, or what the process takes now; the device is not waited for."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
