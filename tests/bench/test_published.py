"""The plain model that training is measured against computes the same loss and gradients from the same weights."""

from __future__ import annotations

import numpy as np
import torch

from tests.bench.published import PublishedMAE, with_weights_of
from training.architecture import ModelConfig
from training.chosen import Chosen
from training.model import SpatialSpectralMAE
from training.tokens import Layout


def test_the_published_pattern_has_the_same_objective() -> None:
    torch.manual_seed(0)
    config, layout = ModelConfig(size="tiny"), Layout.even(6, 48)
    ours = SpatialSpectralMAE(config, {"made": layout})
    plain = with_weights_of(ours.state_dict(), PublishedMAE(config, layout))
    image, noise = torch.rand(3, 6, 48, 48), torch.rand(3, layout.tokens)
    order = torch.argsort(noise, dim=1)
    shown = layout.tokens - int(np.floor(layout.tokens * 0.9 + 0.5))
    chosen = Chosen(order[:, :shown], order[:, shown:], torch.ones(3, layout.places, dtype=torch.bool))

    theirs = plain(image, noise, 0.9)
    mine = ours(image, chosen).loss_sums.sum() / chosen.hidden_BM.numel()
    assert abs(float(mine) - float(theirs)) < 1e-5
    theirs.backward()
    mine.backward()
    # one weight from each end of both models tells that all between them agree
    assert torch.allclose(
        ours.encoder.embed["shared"].weight.grad.flatten(), plain.embed.weight.grad.flatten(), atol=1e-4
    )
    assert torch.allclose(ours.decoder.leave["shared"].weight.grad, plain.leave.weight.grad, atol=1e-4)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in plain.parameters())
