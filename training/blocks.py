"""Transformer blocks: pre-norm, GELU, one fused projection for what is projected from the same tokens.

Shape letters: B batch, N tokens, Q queries, K context tokens, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.attention import Segments, backend


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, attention: str = "auto") -> None:
        super().__init__()
        self.heads = heads
        self.attend = backend(attention)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, segments: Segments | None = None) -> Tensor:
        """Map tokens [B, N, D] to [B, N, D]."""
        B, N, D = x_BND.shape
        # one product for all three: fewer, larger matrix products are faster on every device
        query, key, value = self.qkv(x_BND).view(B, N, 3, self.heads, D // self.heads).unbind(2)
        projected: Tensor = self.project(self.attend(query, key, value, segments).reshape(B, N, D))
        return projected


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a context, whose keys and values share one projection."""

    def __init__(self, width: int, heads: int, attention: str = "auto") -> None:
        super().__init__()
        self.heads = heads
        self.attend = backend(attention)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x_BQD: Tensor, context_BKD: Tensor, segments: Segments | None = None) -> Tensor:
        """Map queries [B, Q, D] with a context [B, K, D] to [B, Q, D]."""
        B, Q, D = x_BQD.shape
        query = self.query(x_BQD).view(B, Q, self.heads, D // self.heads)
        key, value = self.key_value(context_BKD).view(B, -1, 2, self.heads, D // self.heads).unbind(2)
        projected: Tensor = self.project(self.attend(query, key, value, segments).reshape(B, Q, D))
        return projected


class Block(nn.Module):
    """Pre-norm transformer block: attention and a GELU perceptron, each with a residual."""

    def __init__(self, width: int, heads: int, attention: str = "auto", mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads, attention)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = perceptron(width, int(width * mlp_ratio))
        self.drop = DropPath()

    def forward(self, x_BND: Tensor, segments: Segments | None = None) -> Tensor:
        """Map tokens [B, N, D] to [B, N, D]."""
        x_BND = x_BND + self.drop(self.attention(self.norm_1(x_BND), segments))
        out: Tensor = x_BND + self.drop(self.mlp(self.norm_2(x_BND)))
        return out


class DropPath(nn.Module):
    """Stochastic depth: in training, leaves a residual branch out of some images and strengthens it in the others."""

    rate: float = 0.0
    """Share of the images that go without."""

    def forward(self, branch_BND: Tensor) -> Tensor:
        """Return the branch [B, N, D], 0 where it is left out."""
        if not self.training or not self.rate:
            return branch_BND
        kept = torch.rand(len(branch_BND), 1, 1, device=branch_BND.device) >= self.rate
        return branch_BND * kept / (1 - self.rate)


class CrossBlock(nn.Module):
    """The same with attention to a context only: queries do not see each other, so any of them can be left out."""

    def __init__(self, width: int, heads: int, attention: str = "auto", mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = CrossAttention(width, heads, attention)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = perceptron(width, int(width * mlp_ratio))

    def forward(self, x_BQD: Tensor, context_BKD: Tensor, segments: Segments | None = None) -> Tensor:
        """Map queries [B, Q, D] with a context [B, K, D] to [B, Q, D]."""
        x_BQD = x_BQD + self.attention(self.norm_1(x_BQD), context_BKD, segments)
        out: Tensor = x_BQD + self.mlp(self.norm_2(x_BQD))
        return out


def perceptron(width: int, hidden: int) -> nn.Sequential:
    """Return the two-layer GELU perceptron of a block."""
    # the Identity stands where the GELU was: weights keep the names mlp.0 and mlp.2
    return nn.Sequential(nn.Linear(width, hidden), nn.Identity(), GeluLinear(hidden, width))


class GeluLinear(nn.Linear):
    """GELU and a linear map that keeps only what enters: the activated, a quarter of what a block would keep for the
    backward pass, is computed there again for a hundredth of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        out: Tensor = _GeluLinear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        flat = slope.flatten(0, -2)
        by_weight, by_bias = flat.t() @ F.gelu(x).flatten(0, -2), flat.sum(0)
        by_activated = slope @ weight
        # in place: here a step needs the most memory
        torch.ops.aten.gelu_backward.grad_input(by_activated, x, grad_input=by_activated)
        return by_activated, by_weight, by_bias


class Stack(nn.ModuleList):
    """Blocks one after the other.

    recompute: keep only what enters each block, and compute the rest again in the backward pass: less memory for a
    third more time.
    """

    recompute: bool = False

    def forward(self, x: Tensor, *given: Tensor | Segments | None, depths: Collection[int] = ()) -> Tensor:
        """Pass tokens through all blocks; `given` goes to each.

        depths: return what comes after so many blocks instead of the end, each, stacked along a new first axis.
        """
        kept = []
        for number, block in enumerate(self, start=1):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, *given, use_reentrant=False)
            else:
                x = block(x, *given)
            if number in depths:
                kept.append(x)
        return torch.stack(kept) if kept else x


def initialise(module: nn.Module) -> None:
    """Initialise Linear layers xavier-uniform with zero bias, as S2MAE does; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def idle(modules: Iterable[nn.Module]) -> Tensor | float:
    """Return 0 by way of every weight of Linear and Embedding modules that a step does not need.

    So they have a gradient of 0 instead of none: DeepSpeed's stages treat the two differently, and ZeRO-3 would hang
    where ranks disagree.
    """
    total: Tensor | float = 0.0
    for module in modules:
        weight = module.get_parameter("weight")
        row = torch.zeros(1, dtype=torch.long, device=weight.device)
        if isinstance(module, nn.Linear):
            row = weight.new_zeros(module.in_features)
        # called, not touched: ZeRO-3 gathers weights where a module is called
        total = total + module(row).sum() * 0
    return total
