"""The ranks of a run: who we are, which device is ours, and what all ranks agree on.

The clock and the environment are read here and at the other edges only.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import ConfigError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


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
        """Put a few numbers, on any device, into one float64 tensor on this rank's device."""
        # float64: the sum of a thousand ranks must not depend on their order in the seventh digit
        return torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in values])

    def add(self, packed: Tensor) -> Tensor:
        """Add up over all ranks, in place; the host does not wait for it."""
        if self.size > 1:
            dist.all_reduce(packed)
        return packed

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """Add up a few numbers over all ranks in one reduction, and read them."""
        return list(self.add(self.pack(values)).tolist())

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

    def require_same(self, what: str, value: str) -> None:
        """Raise `ConfigError` on all ranks unless all were started with the same `value`."""
        found = self.gather(value)
        if any(other != found[0] for other in found):
            odd = [str(rank) for rank, other in enumerate(found) if other != found[0]]
            raise ConfigError(
                f"ranks {', '.join(odd)} were started with another {what} than rank 0; start all alike."
            )

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


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
