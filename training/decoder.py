"""The decoder: encoded cubes and the places of hidden ones to voxels, by self- or by cross-attention.

Shape letters: B batch (1 where packed), K shown, M predicted, N tokens, D width, P voxels of a cube.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.architecture import ModelConfig
from training.attention import Segments
from training.blocks import Block, CrossBlock, Stack, initialise
from training.chosen import Chosen, Row
from training.positions import Positions
from training.projections import Head
from training.tokens import Layout


class Decoder(nn.Module):
    """Encoded cubes and mask tokens, with positions of its own, to voxels."""

    def __init__(self, config: ModelConfig, layouts: Mapping[str, Layout]) -> None:
        """layouts: by sensor."""
        super().__init__()
        encoder_width, _, _, width, heads = config.dimensions
        self.cross, self.everywhere = config.decoder == "cross", config.spectral_sum_loss
        self.enter = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.positions = Positions(config, layouts, width)
        block = CrossBlock if self.cross else Block
        self.blocks = Stack(block(width, heads, config.attention) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.leave = Head(layouts, width)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(initialise)

    def forward(self, encoded_BKD: Tensor, chosen: Chosen, sensor: str) -> Tensor:
        """Predict the voxels of the hidden cubes, [B, M, P]; of shown and hidden ones, [B, K + M, P], where the loss
        reads all places.
        """
        # class tokens stand before the shown cubes and have no place
        first = encoded_BKD.shape[1] - chosen.shown_BK.shape[1]
        at_BKD = F.pad(self.positions(chosen.shown_BK, sensor), (0, 0, first, 0))
        seen_BKD = self.enter(encoded_BKD) + at_BKD
        asked_BMD = self.mask_token + self.positions(chosen.hidden_BM, sensor)
        decode = self._cross if self.cross else self._self
        x, tokens = decode(seen_BKD, asked_BMD, chosen), chosen.hidden_BM
        if self.everywhere:
            x, tokens = x[:, first:], torch.cat([chosen.shown_BK, tokens], 1)
        else:
            # shown first, hidden after: attention does not mind, and the hidden are cut off by one slice
            x = x[:, x.shape[1] - tokens.shape[1] :]
        predicted: Tensor = self.leave(self.norm(x), tokens, sensor)
        return predicted

    def others(self, sensor: str) -> list[nn.Module]:
        """Return the modules that images of `sensor` leave alone."""
        return self.leave.others(sensor) + self.positions.others(sensor)

    def _self(self, seen_BKD: Tensor, asked_BMD: Tensor, chosen: Chosen) -> Tensor:
        row = Row.of([*_seen_lengths(seen_BKD, chosen), chosen.hidden_lengths], seen_BKD.device)
        x = row.mix(torch.cat([seen_BKD, asked_BMD], dim=1))
        return row.unmix(self.blocks(x, row.segments))

    def _cross(self, seen_BKD: Tensor, asked_BMD: Tensor, chosen: Chosen) -> Tensor:
        row = Row.of(_seen_lengths(seen_BKD, chosen), seen_BKD.device)
        segments = row.segments
        if segments is not None and chosen.hidden_lengths is not None:
            segments = Segments(chosen.hidden_lengths, segments.keys, segments.device)
        decoded: Tensor = self.blocks(asked_BMD, row.mix(seen_BKD), segments)
        return decoded


def _seen_lengths(seen_BKD: Tensor, chosen: Chosen) -> list[tuple[int, ...] | None]:
    first = seen_BKD.shape[1] - chosen.shown_BK.shape[1]
    return [*([chosen.class_lengths] if first else []), chosen.shown_lengths]
