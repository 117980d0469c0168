"""DeepSpeed, in the one file that imports it: the library itself, and its access to weights that lie in shares."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from pipeline.errors import MissingPackageError


def load(device: torch.device) -> Any:
    """Import DeepSpeed, quiet and without the compilation that a CPU run does not need."""
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingPackageError(
            "training needs deepspeed; install it with `make setup`, or `pip install deepspeed`."
        )
    # only without a GPU: with one it would hide it
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="torch.distributed"
    )  # DeepSpeed's, not ours
    with _quiet():
        import deepspeed
        from deepspeed.ops import __compatible_ops__
    if device.type == "cpu" and "deepspeed_shm_comm" in __compatible_ops__:
        __compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles an op for 90 s, and needs g++
    return deepspeed


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep DeepSpeed's INFO lines out of the console."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def share(name: str) -> Callable[..., Any]:
    """Return one of DeepSpeed's functions that read or write weights and moments whatever the ZeRO stage."""
    from deepspeed import utils

    function: Callable[..., Any] = getattr(utils, name)
    return function


def gathered(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
    """Hold weights whole for a while on every rank; nothing happens where they are. Collective."""
    from deepspeed.runtime.zero import GatheredParameters

    context: AbstractContextManager[None] = GatheredParameters(list(parameters))
    return context
