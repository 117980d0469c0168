"""The training state as a whole, by name: float32 weights and AdamW's moments, whatever the ZeRO stage and the ranks.

DeepSpeed's own checkpoints are cut by ranks and stage, and are pickles. What is read off here fits any other cut, so
one form serves to resume, to resize and to hand weights on; in float32 nothing is lost on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import CorruptDataError
from training import zero

MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP, _SCALE = "step", "loss_scale"
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's scaling of fp16 losses remembers of the steps before."""


@dataclass(frozen=True)
class Snapshot:
    """Everything that training has changed."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    """`exp_avg.NAME` and `exp_avg_sq.NAME` of each trained weight, and `step`, the updates that were applied; in fp16
    `loss_scale` too."""

    @property
    def size_bytes(self) -> int:
        """Room that it takes on a disk, but for a header."""
        return sum(t.nbytes for t in (*self.weights.values(), *self.moments.values()))


@dataclass(frozen=True)
class Holder:
    """A module under DeepSpeed and what was made of its optimiser."""

    module: nn.Module
    optimiser: Any

    @property
    def _inner(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = getattr(self.optimiser, "optimizer", self.optimiser)
        return inner

    def _updated(self) -> list[Tensor]:
        """Return the tensors that the optimiser updates: a rank's flat shares under ZeRO, else the weights."""
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
            if hasattr(self.optimiser, name):
                return list(getattr(self.optimiser, name))
        return [p for group in self._inner.param_groups for p in group["params"]]

    def weights(self, kept: bool = True) -> dict[str, Tensor]:
        """Return a copy of the full float32 weights on the CPU; collective, empty where they are not to be kept."""
        full, found = _full_weight(), {}
        for name, parameter in self.module.named_parameters():
            value = full(parameter)
            # one at a time: all of them at once may be more than the device holds
            if kept:
                found[name] = _on_cpu(value)
        # tables that follow from the configuration are buffers too, but no part of the state
        state = self.module.state_dict().keys() if kept else ()
        return found | {k: _on_cpu(v.clone()) for k, v in self.module.named_buffers() if k in state}

    def moments(self, kept: bool = True) -> dict[str, Tensor]:
        """Return a copy of AdamW's state on the CPU; collective, empty where it is not to be kept."""
        self._link()
        full, found = self._full_moment(), {}
        for name, parameter in self.module.named_parameters():
            for moment in MOMENTS if parameter.requires_grad else ():
                value = full(parameter, moment)
                if kept:
                    found[f"{moment}.{name}"] = _on_cpu(value)
        if kept:
            # all were updated as often: a step is skipped for all of them or for none
            found[_STEP] = _on_cpu(self._inner.state[self._updated()[0]][_STEP].clone())
            found |= self._scale()
        return found

    @property
    def _scaler(self) -> Any:
        """What scales the loss in fp16; None in other precisions."""
        scaler = getattr(self.optimiser, "loss_scaler", None)
        return scaler if getattr(scaler, "dynamic", False) else None

    def _scale(self) -> dict[str, Tensor]:
        state = [float(getattr(self._scaler, name)) for name in _SCALER] if self._scaler else []
        return {_SCALE: torch.tensor(state, dtype=torch.float64)} if state else {}

    def _full_moment(self) -> Callable[[nn.Parameter, str], Tensor]:
        read = zero.share("safe_get_full_optimizer_state")

        def full(parameter: nn.Parameter, moment: str) -> Tensor:
            value = read(parameter, moment)
            # stage 0 keeps it where torch does
            kept: Tensor = self._inner.state[parameter][moment] if value is None else value
            return kept.clone() if value is None else kept

        return full

    def restore(self, snapshot: Snapshot) -> None:
        """Take over what `weights` and `moments` returned, maybe on other ranks and at another stage.

        Raises `CorruptDataError` where it is of another model.
        """
        self._require_fitting(snapshot)
        self._begin(snapshot.moments[_STEP])
        if self._scaler and _SCALE in snapshot.moments:
            for name, value in zip(_SCALER, snapshot.moments[_SCALE].tolist(), strict=True):
                setattr(self._scaler, name, type(getattr(self._scaler, name))(value))
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                moments = {m: snapshot.moments[f"{m}.{name}"] for m in MOMENTS if parameter.requires_grad}
                self._put(parameter, snapshot.weights[name], moments)
            for name, buffer in self.module.named_buffers():
                if name in snapshot.weights:
                    buffer.copy_(snapshot.weights[name])

    def _require_fitting(self, snapshot: Snapshot) -> None:
        trained = [n for n, p in self.module.named_parameters() if p.requires_grad]
        needed = {n for n, _ in self.module.named_parameters()} | {
            f"{m}.{n}" for m in MOMENTS for n in trained
        }
        missing = sorted((needed | {_STEP}) - snapshot.weights.keys() - snapshot.moments.keys())
        if missing:
            raise CorruptDataError(
                f"the checkpoint lacks {', '.join(missing[:5])} ({len(missing)} in all): it is of another model."
                " Give another name=... for a new run."
            )

    def _begin(self, step: Tensor) -> None:
        """Make AdamW's state as its first step would."""
        for share in self._updated():
            zeros = {m: torch.zeros_like(share) for m in MOMENTS}
            # each its own counter: one that is shared would be advanced once for each
            self._inner.state[share] = {_STEP: step.clone().to(share.device), **zeros}
        self._link()

    def _link(self) -> None:
        """Tell ZeRO 1 and 2 where each weight's moments are; by themselves they do it for the first group only."""
        shares = self._updated()
        for parameter in self.module.parameters():
            place = getattr(parameter, "_hp_mapping", None)
            if place is not None:
                share = shares[place.param_group_index]
                place.set_optim_state_fragment(share, self._inner.state[share])

    def _put(self, parameter: nn.Parameter, weight: Tensor, moments: dict[str, Tensor]) -> None:
        if hasattr(parameter, "ds_id"):
            _put_share(parameter, weight, moments)
            return
        parameter.copy_(weight)
        if not hasattr(parameter, "_hp_mapping"):
            for moment, value in moments.items():
                self._inner.state[parameter][moment].copy_(value)
            return
        zero.share("safe_set_full_fp32_param")(parameter, weight)
        for moment, value in moments.items():
            zero.share("safe_set_full_optimizer_state")(parameter, value, moment)


def _put_share(parameter: nn.Parameter, weight: Tensor, moments: dict[str, Tensor]) -> None:
    """Put this rank's share of a weight where ZeRO-3 keeps it."""
    share: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
    share.copy_(_cut(weight, share.numel()))
    # small weights stay whole on every rank
    if parameter.numel() == weight.numel():
        parameter.copy_(weight)
    if parameter.requires_grad:
        zero.share("safe_set_local_fp32_param")(parameter, _cut(weight, share.numel()))
    for moment, value in moments.items():
        zero.share("safe_set_local_optimizer_state")(parameter, _cut(value, share.numel()), moment)


def _cut(value: Tensor, size: int) -> Tensor:
    """Return this rank's share of a flat tensor; the last one's is filled up with zeros, as DeepSpeed does."""
    rank = torch.distributed.get_rank()
    share = value.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(share, (0, size - share.numel()))


def _full_weight() -> Callable[[nn.Parameter], Tensor]:
    """Return a function that gives a weight's full float32 value whatever the ZeRO stage; collective."""
    read = zero.share("safe_get_full_fp32_param")

    def full(parameter: nn.Parameter) -> Tensor:
        value = read(parameter) if parameter.requires_grad else None
        if value is not None:
            return value  # type: ignore[no-any-return]
        with zero.gathered([parameter]):  # frozen, or stage 0; a no-op where the parameter is whole
            return parameter.data.clone()

    return full


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().float().cpu().contiguous()


def not_finite(snapshot: Snapshot) -> Iterator[str]:
    """Yield the names of what holds NaN or infinity."""
    for name, value in (*snapshot.weights.items(), *snapshot.moments.items()):
        # the ends tell: one pass, and no mask as large as the weights
        if value.numel() and not all(math.isfinite(end) for end in torch.aminmax(value)):
            yield name
