"""Attention backends behind one function and one table.

A backend takes queries, keys and values `[B, heads, N, D / heads]` and returns the same shape.
Shape letters: B batch, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import unknown

Backend = Callable[[Tensor, Tensor, Tensor], Tensor]


def naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with the weights materialised: the oracle of the others."""
    weights = (query @ key.transpose(-2, -1)) / math.sqrt(query.shape[-1])
    return weights.softmax(-1) @ value


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Fused attention of torch, which picks its own kernel by device, dtype and shape."""
    return F.scaled_dot_product_attention(query, key, value)


def backend(name: str) -> Backend:
    """Return the backend called `name`; raises `UnknownNameError` with the nearest one."""
    try:
        return ATTENTIONS[name]
    except KeyError:
        raise unknown("attention backend", name, ATTENTIONS) from None


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, attention: str = "auto") -> None:
        super().__init__()
        self.heads = heads
        self.attend = backend(attention)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map tokens [B, N, D] to [B, N, D]."""
        B, N, D = x_BND.shape
        # one product for all three: fewer, larger matrix products are faster on every device
        qkv = self.qkv(x_BND).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        # heads before tokens, as every backend wants it
        out = self.attend(*qkv.unbind(0))
        projected: Tensor = self.project(out.transpose(1, 2).reshape(B, N, D))
        return projected


class Block(nn.Module):
    """Pre-norm transformer block: attention and a GELU perceptron, each with a residual."""

    def __init__(self, width: int, heads: int, attention: str = "auto", mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads, attention)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map tokens [B, N, D] to [B, N, D]."""
        x_BND = x_BND + self.attention(self.norm_1(x_BND))
        out: Tensor = x_BND + self.mlp(self.norm_2(x_BND))
        return out


def stack(width: int, depth: int, heads: int, attention: str) -> nn.ModuleList:
    """Return `depth` blocks."""
    return nn.ModuleList(Block(width, heads, attention) for _ in range(depth))


def initialise(module: nn.Module) -> None:
    """Initialise Linear layers xavier-uniform with zero bias, as S2MAE does; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# auto leaves the choice of kernel to torch: by device, dtype and shape it knows better than a table
ATTENTIONS: dict[str, Backend] = {"auto": sdpa, "sdpa": sdpa, "naive": naive}
