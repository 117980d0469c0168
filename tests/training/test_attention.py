"""Every attention backend agrees with the naive one, forward and backward, in rows and packed."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from pipeline.errors import MissingPackageError, UnknownNameError
from training.attention import ATTENTIONS, Segments, backend
from training.blocks import Block, CrossBlock

GPU = torch.cuda.is_available()
ON_CPU = sorted(set(ATTENTIONS) - {"xformers"})
PACKED = ((5, 1, 11), (3, 8, 6))
"""Queries and keys of three images in one row."""


def made(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(shape[1])
    return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()


def attended(name: str, packed: bool, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return a backend's output and its three gradients."""
    segments = Segments(*PACKED, torch.device(device)) if packed else None
    images, queries, keys = (1, 17, 17) if packed else (2, 17, 13)
    inputs = [made((images, n, 4, 16), device, dtype) for n in (queries, keys, keys)]
    out = backend(name)(*inputs, segments)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
    return out, *torch.autograd.grad((out * weights).sum(), inputs)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ON_CPU)
def test_backends_agree_with_the_naive_one(name: str, packed: bool) -> None:
    found, oracle = (attended(n, packed, "cpu", torch.float32) for n in (name, "naive"))
    for ours, theirs in zip(found, oracle, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(ATTENTIONS))
def test_backends_agree_on_a_gpu(name: str, dtype: torch.dtype, packed: bool) -> None:
    if name == "xformers" and importlib.util.find_spec("xformers") is None:
        pytest.skip("needs xformers: pip install -e .[cuda]")
    oracle = attended("naive", packed, "cpu", torch.float32)
    within = 3e-2 if dtype == torch.bfloat16 else 2e-3
    for ours, theirs in zip(attended(name, packed, "cuda", dtype), oracle, strict=True):
        assert (ours.float().cpu() - theirs).abs().max() < within * theirs.abs().max()


@pytest.mark.parametrize("name", ON_CPU)
def test_images_of_a_packed_row_do_not_see_each_other(name: str) -> None:
    query, key, value = (torch.randn(1, n, 2, 8) for n in (17, 17, 17))
    together = backend(name)(query, key, value, Segments(*PACKED, torch.device("cpu")))
    alone = backend(name)(query[:, 5:6], key[:, 3:11], value[:, 3:11], None)
    assert torch.allclose(together[:, 5:6], alone, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed")
def test_a_backend_that_is_not_installed_says_what_to_do() -> None:
    with pytest.raises(MissingPackageError, match=r"model\.attention=auto"):
        attended("xformers", True, "cpu", torch.float32)


def test_an_unknown_backend_is_corrected() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean `sdpa`"):
        backend("spda")


def test_blocks_treat_tokens_as_a_set() -> None:
    torch.manual_seed(0)
    block, cross, x, context = Block(24, 3), CrossBlock(24, 3), torch.randn(1, 9, 24), torch.randn(1, 5, 24)
    order = torch.randperm(9)
    assert torch.allclose(block(x)[:, order], block(x[:, order]), atol=1e-5)
    assert torch.allclose(cross(x, context)[:, order], cross(x[:, order], context.flip(1)), atol=1e-5)
