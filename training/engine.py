"""DeepSpeed, the only engine: the same code on one CPU process and on many GPU nodes.

Losses are sums divided by the number of counted items in the *global* batch, so that neither ranks nor
micro-batches change the result; DeepSpeed's own averaging is undone by one factor.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.errors import ConfigError, CorruptDataError, MissingPackageError, TrainingError
from training.world import World


class EngineConfig(Config):
    """How DeepSpeed runs the step."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO: 1 shares the optimiser's state among the ranks, 2 also gradients, 3 also parameters."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on GPUs that have it, fp32 elsewhere (bf16 is several times slower on plain CPUs)."""
    timeout_s: float = Field(default=600.0, gt=0)
    """How long a rank waits for the others before it gives up."""

    def resolve(self, device: torch.device) -> str:
        """Return the precision used on `device`; raises `ConfigError` for what would train wrongly."""
        chosen = self.precision
        if chosen == "auto":
            chosen = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        if chosen == "bf16" and self.zero_stage == 0:
            raise ConfigError(
                "engine.zero_stage 0 with bf16 trains wrongly in DeepSpeed: set engine.zero_stage=1."
            )
        return chosen


@dataclass(frozen=True)
class Recipe:
    """What one optimiser step is made of."""

    groups: list[dict[str, object]]
    """AdamW's parameter groups; a group's `lr_scale` multiplies the learning rate."""
    betas: tuple[float, float]
    clip_norm: float
    micro: int
    """Samples a rank holds at once."""
    accumulation: int
    """Micro-batches of a step."""


@dataclass(frozen=True)
class StepResult:
    """What a step reports, over the global batch."""

    loss: float
    grad_norm: float
    lr: float
    applied: bool
    """Whether the optimiser moved the weights."""
    stop: bool
    """Whether any rank was asked to stop."""
    counted: float
    """Items that the loss's first term is the mean of."""
    observed: dict[str, float]
    """What each rank observed, averaged over the ranks."""


class Sums(Protocol):
    """The losses of one rank's step."""

    @property
    def losses(self) -> Iterator[Tensor]:
        """One float32 [terms] a micro-batch: each term a *sum* over its counted items."""

    @property
    def counted(self) -> Sequence[float]:
        """Number of counted items of each term on this rank, over all micro-batches."""

    @property
    def observed(self) -> dict[str, float]:
        """What to report beside the loss; the same names on every rank."""


class Engine:
    """A model under DeepSpeed."""

    def __init__(self, model: nn.Module, recipe: Recipe, config: EngineConfig, world: World) -> None:
        self.world, self.config, self.recipe = world, config, recipe
        self.precision = config.resolve(world.device)
        world.connect(config.timeout_s)
        deepspeed = _import_deepspeed(world.device)
        # ours, not "AdamW" in the configuration: that one compiles an extension for minutes
        optimiser = torch.optim.AdamW(recipe.groups, lr=1.0, betas=recipe.betas, fused=True)
        self._engine, self._optimiser, _, _ = deepspeed.initialize(
            model=model.to(world.device),
            optimizer=optimiser,
            config=self._deepspeed_config(),
            dist_init_required=False,
        )
        self._fixed = [{k: v for k, v in group.items() if k != "params"} for group in recipe.groups]

    def _deepspeed_config(self) -> dict[str, object]:
        return {
            "train_micro_batch_size_per_gpu": self.recipe.micro,
            "gradient_accumulation_steps": self.recipe.accumulation,
            "gradient_clipping": self.recipe.clip_norm,
            "zero_optimization": {"stage": self.config.zero_stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": self.precision == "bf16"},
            "steps_per_print": 10**9,
        }

    @property
    def module(self) -> nn.Module:
        """The model DeepSpeed holds; call it for evaluation (collective under ZeRO-3)."""
        module: nn.Module = self._engine
        return module

    def step(self, work: Sums, lr: float, stop: bool) -> StepResult:
        """Run one optimiser step over the micro-batches' summed losses.

        stop: whether this rank was asked to stop; the result tells whether any was.
        Raises `TrainingError` on all ranks where loss or gradient is not finite.
        """
        # stays on the device: the host need not know it before the backward pass
        total = self.world.add(self.world.pack(work.counted)).clamp(min=1)
        # DeepSpeed divides by ranks and accumulation steps; the factor undoes both
        factor = (self.world.size * self.recipe.accumulation / total).float()
        self._set_lr(lr)
        summed = torch.zeros_like(total)
        norm: float | Tensor | None = None
        for number, loss in enumerate(work.losses, start=1):
            self._engine.backward((loss * factor).sum())
            summed += loss.detach()
            last = number == self.recipe.accumulation
            norm = self._norm_before_step() if last and self.config.zero_stage == 0 else None
            self._engine.step()
        norm = self._engine.get_global_grad_norm() if norm is None else norm
        result = self._agree(summed, norm, lr, stop, work)
        _require_finite(result)
        return result

    def _agree(
        self, summed: Tensor, norm: float | Tensor | None, lr: float, stop: bool, work: Sums
    ) -> StepResult:
        """Tell all ranks the same of a step, in one reduction and one copy to the host."""
        missed = not self._engine.was_step_applied()
        known = math.nan if norm is None else norm
        terms = len(work.counted)
        found = [known, float(stop), float(missed), *summed, *work.counted, *work.observed.values()]
        norms, stops, misses, *rest = self.world.sum(found)
        sums, counted, observed = rest[:terms], rest[terms : 2 * terms], rest[2 * terms :]
        return StepResult(
            sum(s / max(n, 1.0) for s, n in zip(sums, counted, strict=True)),
            norms / self.world.size,
            lr,
            applied=not misses,
            stop=stops > 0,
            counted=counted[0],
            observed=dict(zip(work.observed, (v / self.world.size for v in observed), strict=True)),
        )

    def _set_lr(self, lr: float) -> None:
        for group, fixed in zip(self._optimiser.param_groups, self._fixed, strict=True):
            # a pure function of the step, so the schedule has no state to save
            group["lr"] = lr * float(fixed.get("lr_scale", 1.0))  # type: ignore[arg-type]

    def _norm_before_step(self) -> float:
        """Return the gradient norm at stage 0, where DeepSpeed reports none and would apply a non-finite step."""
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient norm is {norm} before the update; lower optimiser.base_lr or look at the batch."
            )
        return norm

    def save(self, folder: Path) -> None:
        """Write this engine's state below `folder`; collective."""
        with _quiet():
            self._engine.save_checkpoint(str(folder), tag="state", save_latest=False)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; collective. Raises `CorruptDataError` where nothing was found."""
        with _quiet():
            found, _ = self._engine.load_checkpoint(str(folder), tag="state")
        if found is None:
            raise CorruptDataError(f"{folder} holds no DeepSpeed state of this kind (ZeRO stage, ranks).")
        self._mend_groups()

    def _mend_groups(self) -> None:
        """Undo what ZeRO-3 mixes up on loading: group values copied from group 0, one shared step counter."""
        inner = getattr(self._optimiser, "optimizer", self._optimiser)
        for holder in (self._optimiser, inner):
            for group, fixed in zip(holder.param_groups, self._fixed, strict=True):
                group.update(fixed)
        # one tensor shared by all parameters would be advanced once for each
        for state in inner.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()

    def weights(self) -> dict[str, Tensor]:
        """Return the full float32 weights on the CPU, on every rank; collective."""
        full = _full_parameter()
        named = {name: full(p) for name, p in self._engine.module.named_parameters()}
        # tables that follow from the configuration are buffers too, but no part of the state
        kept = self._engine.module.state_dict().keys()
        buffers = {k: v for k, v in self._engine.module.named_buffers() if k in kept}
        return {k: v.detach().float().cpu().contiguous() for k, v in (named | buffers).items()}


def _require_finite(result: StepResult) -> None:
    if not math.isfinite(result.loss) or not result.applied:
        raise TrainingError(
            f"loss {result.loss}, gradient norm {result.grad_norm}, update applied: {result.applied}."
            " The last good checkpoint is kept; lower optimiser.base_lr or look at the batch."
        )


def _import_deepspeed(device: torch.device) -> Any:
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


def _full_parameter() -> Callable[[nn.Parameter], Tensor]:
    """Return a function that gives a parameter's full float32 value whatever the ZeRO stage; collective."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    def full(parameter: nn.Parameter) -> Tensor:
        value = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        if value is not None:
            return value  # type: ignore[no-any-return]
        with GatheredParameters([parameter]):  # frozen, or stage 0; a no-op where the parameter is whole
            return parameter.data.clone()

    return full
