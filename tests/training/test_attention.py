"""Every attention backend agrees with the naive one, forward and backward."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import UnknownNameError
from training.attention import ATTENTIONS, Block, backend


@pytest.mark.parametrize("name", sorted(ATTENTIONS))
def test_backends_agree_with_the_naive_one(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 17, 8, generator=generator, requires_grad=True) for _ in range(3)]
    weights = torch.randn(2, 3, 17, 8, generator=generator)
    found = {}
    for chosen in ("naive", name):
        out = backend(chosen)(*inputs)
        found[chosen] = (out, *torch.autograd.grad((out * weights).sum(), inputs))
    for ours, oracle in zip(found[name], found["naive"], strict=True):
        assert torch.allclose(ours, oracle, atol=1e-5)


def test_an_unknown_backend_is_corrected() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean `sdpa`"):
        backend("spda")


def test_a_block_treats_tokens_as_a_set() -> None:
    torch.manual_seed(0)
    block, x = Block(24, 3), torch.randn(1, 9, 24)
    order = torch.randperm(9)
    assert torch.allclose(block(x)[:, order], block(x[:, order]), atol=1e-5)
