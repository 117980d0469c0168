"""Floating-point operations of the model's matrix products, and how many the device can do in a second.

Counted is what the products of a training step need, a multiplication and an addition as two: normalisation, activation
and the optimiser are not, nor what `engine.recompute` computes twice. So a share of the peak means the same everywhere.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import torch

from training.architecture import ModelConfig
from training.masking import Choice
from training.tokens import Layout

_PEAK_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Flops:
    """Operations of one image's forward pass, by part."""

    embedding: int
    encoder: int
    decoder: int
    """With the way in and out."""

    @property
    def forward(self) -> int:
        """Operations of a forward pass."""
        return self.embedding + self.encoder + self.decoder

    @property
    def training(self) -> int:
        """Operations of a forward and a backward pass."""
        # a product's backward pass is two more, but nobody asks for the slope by the image
        return 3 * self.forward - self.embedding


def block_flops(width: int, queries: int, keys: int | None = None) -> int:
    """Return the operations of a block's forward pass; keys: of a block that attends to a context."""
    context = queries if keys is None else keys
    # query and exit, key and value, the perceptron's 4 + 4; then weights and weighted values
    return 2 * width**2 * (2 * queries + 2 * context + 8 * queries) + 4 * queries * context * width


def encoder_flops(config: ModelConfig, layout: Layout, shown: int) -> Flops:
    """Return the operations of encoding `shown` cubes of an image."""
    width, depth, *_ = config.dimensions
    tokens = shown + config.class_token
    return Flops(2 * shown * width * _voxels(layout), depth * block_flops(width, tokens), 0)


def model_flops(config: ModelConfig, layout: Layout, shown: int, predicted: int) -> Flops:
    """Return the operations of reconstructing `predicted` cubes of an image from `shown` ones.

    Positions by wavelength, less than a thousandth, are left out.
    """
    encoded, width = encoder_flops(config, layout, shown), config.dimensions.decoder_width
    seen = shown + config.class_token
    cross = config.decoder == "cross"
    block = block_flops(width, predicted, seen) if cross else block_flops(width, seen + predicted)
    left = predicted + (shown if config.spectral_sum_loss else 0)
    ways = 2 * seen * config.dimensions.width * width + 2 * left * width * _voxels(layout)
    return Flops(encoded.embedding, encoded.encoder, config.decoder_depth * block + ways)


def step_flops(config: ModelConfig, layout: Layout, choice: Choice) -> int:
    """Return the operations of training on the images of a batch, which may show different numbers of cubes."""
    pairs = zip(
        (choice.shown_BK >= 0).sum(1).tolist(), (choice.predicted_BM >= 0).sum(1).tolist(), strict=True
    )
    return sum(n * model_flops(config, layout, *pair).training for pair, n in Counter(pairs).items())


def _voxels(layout: Layout) -> int:
    """Return the voxels that a cube's projection reads: each group's own is applied to all cubes."""
    return layout.voxels if layout.shared else sum(map(layout.voxels_of, range(layout.groups)))


def measure_peak(device: torch.device, dtype: torch.dtype, times: int = 4) -> float:
    """Measure how many operations of a large matrix product the device does in a second, at its best."""
    side = _PEAK_SIDE[device.type]
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    # one before the clock runs: a GPU's first product loads its library
    out, took_s = a @ b, []
    for _ in range(times):
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        took_s.append(time.perf_counter() - began)
    # the fastest: whatever else runs can only have slowed the others
    return 2 * side**3 / min(took_s)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
