"""The ranks of a run: who we are, which device is ours, and what all ranks agree on.

The clock and the environment are read here and at the other edges only.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from pipeline.config import differences
from pipeline.errors import ConfigError, TrainingError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}

_LOST = re.compile(r"gloo|nccl|connection (closed|reset)|timed out|timeout", re.IGNORECASE)
_MOST_TOLD = 10


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_env(cls) -> World:
        """Read RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; none of them means one process.

        Under srun the first three may be given as SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID.
        Raises `ConfigError` naming the variables that are missing or wrong.
        """
        given = {name: os.environ.get(name) or os.environ.get(_SLURM.get(name, "")) for name in NAMES}
        # Slurm sets SLURM_PROCID in interactive shells too: it counts only beside an address
        if not any(os.environ.get(name) for name in NAMES):
            return cls()
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise ConfigError(
                f"of {', '.join(NAMES)} these are not set: {', '.join(missing)}. Set all five, or none."
            )
        numbers = [_number(name, given[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        if not 0 <= numbers[0] < numbers[1]:
            raise ConfigError(f"RANK={numbers[0]} is not below WORLD_SIZE={numbers[1]}.")
        return cls(*numbers)

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files and talks."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def connect(self, timeout_s: float = 600.0) -> None:
        """Start torch.distributed; DeepSpeed finds it running. Does nothing the second time.

        Raises `ConfigError` where the address cannot be used (an occupied port).
        """
        if dist.is_initialized():
            return
        self._set_environment()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        except (dist.DistError, RuntimeError, ValueError) as error:
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise ConfigError(
                f"rank {self.rank} of {self.size} cannot meet the others at {address} (occupied port, or a rank that"
                f" did not start): {str(error).splitlines()[0]}. Choose another MASTER_PORT."
            ) from error

    def limit(self, timeout_s: float) -> None:
        """Give all groups of ranks the same patience, also those that DeepSpeed made: theirs is half an hour."""
        # private names of torch, which has no public ones: without them a rank that hangs is found late
        known = getattr(c10d, "_world", None)
        for group in tuple(known.pg_map) if known and self.size > 1 else ():
            c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)

    def _set_environment(self) -> None:
        """DeepSpeed reads the five variables itself, also in a single process."""
        if self.size == 1 and "MASTER_PORT" not in os.environ:
            os.environ["MASTER_PORT"] = str(_free_port())
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ |= {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
        }

    def pack(self, values: Sequence[float | Tensor]) -> Tensor:
        """Put a few numbers, the host's and the device's, into one float64 tensor on this rank's device."""
        # float64: the sum of a thousand ranks must not depend on their order in the seventh digit
        there = [isinstance(v, Tensor) and v.device == self.device for v in values]
        known = [0.0 if t else float(v) for v, t in zip(values, there, strict=True)]
        hosts = to_device(torch.tensor(known, dtype=torch.float64), self.device).unbind()
        mixed = (torch.as_tensor(v) if t else h for v, t, h in zip(values, there, hosts, strict=True))
        return torch.stack([v.reshape(()).double() for v in mixed])

    def add(self, packed: Tensor) -> Tensor:
        """Add up over all ranks, in place; the host does not wait for it."""
        if self.size > 1:
            dist.all_reduce(packed)
        return packed

    def send(self, values: Sequence[float | Tensor]) -> Callable[[], list[float]]:
        """Start adding up a few numbers over all ranks in one reduction; return what waits for them and reads them."""
        packed = self.add(self.pack(values))
        if self.device.type == "cpu":
            return packed.tolist
        there = torch.empty_like(packed, device="cpu", pin_memory=True).copy_(packed, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()

        def read() -> list[float]:
            arrived.synchronize()
            return list(there.tolist())

        return read

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """Add up a few numbers over all ranks in one reduction, and read them."""
        return self.send(values)()

    def gather(self, value: object) -> list[object]:
        """Return every rank's `value`, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        found: list[object] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def require_same(self, what: str, value: dict[str, Any]) -> None:
        """Raise `ConfigError` on all ranks, with the differences, unless all were started with the same `value`."""
        found = [each for each in self.gather(value) if isinstance(each, dict)]
        odd = {rank: differences(found[0], each) for rank, each in enumerate(found) if each != found[0]}
        if odd:
            told = "; ".join(f"rank {rank}: {', '.join(d[:_MOST_TOLD])}" for rank, d in odd.items())
            raise ConfigError(
                f"not all ranks were started with the {what} of rank 0 ({told}); start all alike."
            )

    @contextmanager
    def named(self, what: str) -> Iterator[None]:
        """Turn the loss of another rank during `what` into one clear line: `TrainingError`."""
        try:
            yield
        except RuntimeError as error:
            # torch has no class of its own for what gloo and NCCL say
            if self.size == 1 or not _LOST.search(str(error)):
                raise
            raise TrainingError(
                f"rank {self.rank} of {self.size} lost another rank in {what}: it ended, or hangs"
                f" ({str(error).splitlines()[0]}). Its own last lines tell why; the same command goes on from the last"
                " checkpoint."
            ) from error

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device; neither waits for the other."""
    # from other than pinned memory the host would wait for all that the device has yet to do
    pinned = value.pin_memory() if device.type == "cuda" else value
    return pinned.to(device, non_blocking=True)


def _number(name: str, text: str | None) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise ConfigError(f"{name}={text!r} is not a whole number.") from None


def _free_port() -> int:
    # port 0 lets the system choose; several runs can share a laptop
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
