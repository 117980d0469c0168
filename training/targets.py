"""What the decoder should predict, how wrong it is, and how pictures get back from there.

Shape letters: B batch, S places, T spectral groups, N = T * S tokens, M predicted, P voxels of a cube.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.architecture import Target
from training.chosen import Chosen
from training.tokens import Layout, gather, real_voxels, to_image


def targets(cubes_BMP: Tensor, tokens_BM: Tensor, target: Target, layout: Layout) -> Tensor:
    """Return what should be predicted, [B, M, P], for cubes [B, M, P] on the source's scale."""
    if target == "signed":
        return 2 * cubes_BMP - 1
    if target in ("none", "unit"):
        return cubes_BMP
    mean, deviation = _moments(cubes_BMP, tokens_BM, target, layout)
    return ((_pieces(cubes_BMP, target, layout) - mean) / deviation).flatten(-2)


def restore(
    predicted_BMP: Tensor, cubes_BMP: Tensor, tokens_BM: Tensor, target: Target, layout: Layout
) -> Tensor:
    """Undo `targets` for a picture: predictions [B, M, P] back on the source's scale, moments from the true cubes."""
    if target == "signed":
        return (predicted_BMP + 1) / 2
    if target in ("none", "unit"):
        return predicted_BMP
    mean, deviation = _moments(cubes_BMP, tokens_BM, target, layout)
    return (_pieces(predicted_BMP, target, layout) * deviation + mean).flatten(-2)


def picture(
    cubes_BNP: Tensor, chosen: Chosen, predicted_BMP: Tensor | None, target: Target, layout: Layout
) -> Tensor:
    """Return images [B, C, H, W] of the shown of the cubes [B, N, P] and of what was predicted; the rest is 0."""
    rows = chosen.lay(cubes_BNP)
    canvas = _put(torch.zeros_like(rows), chosen.shown_BK, gather(rows, chosen.shown_BK))
    if predicted_BMP is not None:
        true_BMP = gather(rows, chosen.hidden_BM)
        restored = restore(predicted_BMP, true_BMP, chosen.hidden_BM, target, layout)
        canvas = _put(canvas, chosen.hidden_BM, restored)
    return to_image(canvas.view_as(cubes_BNP), layout)


def _put(cubes_BNP: Tensor, tokens_BK: Tensor, values_BKP: Tensor) -> Tensor:
    return cubes_BNP.scatter(1, tokens_BK.unsqueeze(-1).expand_as(values_BKP), values_BKP)


def cube_errors(predicted_BMP: Tensor, wanted_BMP: Tensor, real_BMP: Tensor | None) -> Tensor:
    """Return the squared error [B, M] of each cube, averaged over its real voxels."""
    return _mean((predicted_BMP - wanted_BMP).square(), real_BMP).squeeze(-1)


def spectral_sum_errors(off_BNP: Tensor, layout: Layout) -> Tensor:
    """Return the squared error [B, S] of the sums over the T groups at each place, averaged over voxels.

    off_BNP: prediction less target of every cube; the sum of differences is the difference of sums.
    """
    off_BTSP = off_BNP.reshape(-1, layout.groups, layout.places, layout.voxels)
    return off_BTSP.sum(1).square().mean(-1)


def _pieces(cubes_BMP: Tensor, target: Target, layout: Layout) -> Tensor:
    """Split the voxels into what is standardised together: the bands of a cube, or all of it, [B, M, pieces, ...]."""
    pieces = layout.depth if target == "band_standardised" else 1
    return cubes_BMP.view(*cubes_BMP.shape[:-1], pieces, -1)


def _moments(cubes_BMP: Tensor, tokens_BM: Tensor, target: Target, layout: Layout) -> tuple[Tensor, Tensor]:
    real = real_voxels(tokens_BM, layout)
    real = None if real is None else _pieces(real, target, layout)
    pieces = _pieces(cubes_BMP, target, layout)
    mean = _mean(pieces, real)
    # eps 1e-6 keeps a constant cube finite: it becomes 0, not NaN
    return mean, (_mean((pieces - mean).square(), real) + 1e-6).sqrt()


def _mean(x: Tensor, real: Tensor | None) -> Tensor:
    """Return the mean over the last axis, kept, of the real voxels."""
    if real is None:
        return x.mean(-1, keepdim=True)
    # a piece that is filling altogether has no mean, and no loss reads it
    return (x * real).sum(-1, keepdim=True) / real.sum(-1, keepdim=True).clamp(min=1)
