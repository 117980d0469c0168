"""Attention backends behind one function and one table.

A backend takes queries [B, Q, heads, D / heads], keys and values [B, K, heads, D / heads], and optionally `Segments`
for one packed row whose images do not see each other; it returns the shape of the queries.
Shape letters: B batch, Q queries, K keys, D width.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import MissingPackageError, unknown


@dataclass(frozen=True)
class Segments:
    """Which tokens of a packed row belong to one image: how many queries and how many keys each image has."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    device: torch.device

    @cached_property
    def mask(self) -> Tensor:
        """True where a query may see a key, bool [Q, K]."""
        owner_Q, owner_K = (
            torch.arange(len(n)).repeat_interleave(torch.tensor(n)) for n in (self.queries, self.keys)
        )
        return (owner_Q[:, None] == owner_K[None, :]).to(self.device)

    @cached_property
    def bias(self) -> Any:
        """The same as xformers' block-diagonal mask, which is never materialised."""
        return _xformers().fmha.attn_bias.BlockDiagonalMask.from_seqlens(
            list(self.queries), list(self.keys), device=self.device
        )


Backend = Callable[[Tensor, Tensor, Tensor, Segments | None], Tensor]


def naive(query: Tensor, key: Tensor, value: Tensor, segments: Segments | None = None) -> Tensor:
    """Attention with the weights materialised: the oracle of the others."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    weights = (query @ key.transpose(-2, -1)) / math.sqrt(query.shape[-1])
    if segments is not None:
        weights = weights.masked_fill(~segments.mask, -math.inf)
    return (weights.softmax(-1) @ value).transpose(1, 2)


def sdpa(query: Tensor, key: Tensor, value: Tensor, segments: Segments | None = None) -> Tensor:
    """Fused attention of torch, which picks its own kernel by device, dtype and shape; segments are materialised."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mask = None if segments is None else segments.mask
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def by_image(query: Tensor, key: Tensor, value: Tensor, segments: Segments | None = None) -> Tensor:
    """`sdpa` for one image of a packed row after the other: more calls, no mask, nothing computed to be masked out."""
    if segments is None:
        return sdpa(query, key, value)
    queries = torch.split(query, list(segments.queries), 1)
    keys, values = (torch.split(x, list(segments.keys), 1) for x in (key, value))
    rows = zip(queries, keys, values, strict=True)
    return torch.cat([sdpa(q, k, v) if q.shape[1] else q for q, k, v in rows], 1)


def xformers(query: Tensor, key: Tensor, value: Tensor, segments: Segments | None = None) -> Tensor:
    """Memory-efficient attention of xformers, which reads packed rows block by block; on GPUs only."""
    bias = None if segments is None else segments.bias
    out: Tensor = _xformers().memory_efficient_attention(query, key, value, attn_bias=bias)
    return out


def auto(query: Tensor, key: Tensor, value: Tensor, segments: Segments | None = None) -> Tensor:
    """Take xformers for packed rows on a GPU that has it, and torch's own choice of kernel for everything else."""
    # never a mask: it grows with the square of the batch and rules out the flash kernels
    # on a CPU xformers imports and has no attention: that it is installed does not say enough
    packed_on_gpu = segments is not None and query.is_cuda and _has_xformers()
    return (xformers if packed_on_gpu else by_image)(query, key, value, segments)


def backend(name: str) -> Backend:
    """Return the backend called `name`; raises `UnknownNameError` with the nearest one."""
    try:
        return ATTENTIONS[name]
    except KeyError:
        raise unknown("attention backend", name, ATTENTIONS, "model.attention") from None


@lru_cache(maxsize=1)
def _has_xformers() -> bool:
    # remembered: a search of the path in every block would cost more than it saves
    return importlib.util.find_spec("xformers") is not None


def _xformers() -> Any:
    if not _has_xformers():
        raise MissingPackageError(
            "model.attention `xformers` needs xformers and a GPU: install it with `pip install -e .[cuda]`, or set"
            " model.attention=auto."
        )
    from xformers import ops

    return ops


ATTENTIONS: dict[str, Backend] = {
    "auto": auto,
    "sdpa": sdpa,
    "by_image": by_image,
    "xformers": xformers,
    "naive": naive,
}
