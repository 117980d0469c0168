"""S2MAE: a 3-D masked autoencoder on spectral cubes, written from the published description (CVPR 2024).

SatMAE's grouped channels are the same model with groups of its own, fixed positions and a class token.
Shape letters: B batch, C bands, H W pixels, T spectral groups, S places, N = T * S tokens, K shown, M predicted,
D width, P voxels of a cube.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import unknown
from training.architecture import ModelConfig
from training.blocks import Block, Stack, idle, initialise
from training.chosen import Chosen, Row
from training.decoder import Decoder
from training.positions import Positions
from training.projections import Embedding
from training.targets import cube_errors, spectral_sum_errors, targets
from training.tokens import Layout, Rescale, gather, real_voxels, to_cubes


class Encoder(nn.Module):
    """Embeds and encodes chosen cubes only: gathered first, embedded after."""

    def __init__(self, config: ModelConfig, layouts: Mapping[str, Layout]) -> None:
        """layouts: by sensor."""
        super().__init__()
        width, self.depth, heads, _, _ = config.dimensions
        self.layouts, self.width = dict(layouts), width
        self.embed = Embedding(layouts, width)
        self.positions = Positions(config, layouts, width)
        self.class_token = nn.Parameter(torch.empty(width)) if config.class_token else None
        self.blocks = Stack(Block(width, heads, config.attention) for _ in range(self.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        # after everything is made: positions are parameters of their own and keep their trunc_normal
        self.apply(initialise)
        if self.class_token is not None:
            nn.init.normal_(self.class_token, std=0.02)

    def forward(self, cubes_BNP: Tensor, chosen: Chosen, sensor: str, depths: Collection[int] = ()) -> Tensor:
        """Encode the shown of the cubes [B, N, P] to [B, K, D]; class tokens, where there are any, come first.

        depths: return what comes after so many blocks, [depth, B, K, D]; of rows that are not packed.
        """
        shown_BK = chosen.shown_BK
        # gathered first: nine in ten cubes are never embedded
        x = self.embed(gather(cubes_BNP, shown_BK), shown_BK, sensor)
        x = x + self.positions(shown_BK, sensor)
        parts = [chosen.shown_lengths]
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), chosen.images, -1), x], 1)
            parts = [chosen.class_lengths, *parts]
        row = Row.of(parts, x.device)
        encoded: Tensor = self.norm(row.unmix(self.blocks(row.mix(x), row.segments, depths=depths)))
        return encoded

    def everything(self, image_BCHW: Tensor, sensor: str = "") -> Tensor:
        """Encode all cubes of normalised images [B, C, H, W] to [B, N, D], as downstream tasks do."""
        return self.levels(image_BCHW, (self.depth,), sensor)[0]

    def levels(self, image_BCHW: Tensor, depths: Collection[int], sensor: str = "") -> Tensor:
        """Encode all cubes of normalised images [B, C, H, W]; return what comes after so many blocks, each normed,
        [depth, B, N, D].
        """
        sensor = which(sensor, self.layouts)
        cubes_BNP = to_cubes(image_BCHW, self.layouts[sensor])
        every_BN = torch.arange(cubes_BNP.shape[1], device=cubes_BNP.device).expand(len(cubes_BNP), -1)
        # none is predicted, and none carries loss
        nothing = every_BN[:, :0]
        encoded: Tensor = self(cubes_BNP, Chosen(every_BN, nothing, nothing.bool()), sensor, depths)
        return encoded if self.class_token is None else encoded[:, :, 1:]

    def others(self, sensor: str) -> list[nn.Module]:
        """Return the modules that images of `sensor` leave alone."""
        return self.embed.others(sensor) + self.positions.others(sensor)


@dataclass(frozen=True)
class MAEOutput:
    """What a forward pass returns."""

    loss_sums: Tensor
    """Squared error, averaged over voxels and summed over the counted cubes; with `spectral_sum_loss` also over the
    valid places. float32 [1] or [2]."""
    predicted_BMP: Tensor
    """Predicted voxels of the hidden cubes, on the target's scale."""


class SpatialSpectralMAE(nn.Module):
    """The masked autoencoder: encoder over the shown cubes, decoder to the hidden ones, loss on the counted."""

    def __init__(
        self,
        config: ModelConfig,
        layouts: Mapping[str, Layout],
        to_unit: Mapping[str, Rescale] | None = None,
    ) -> None:
        """layouts: by sensor; to_unit: from the input's scale to the one of `minmax`, where it is another."""
        super().__init__()
        self.config, self.layouts = config, dict(layouts)
        self.to_unit = dict(to_unit or {}) if config.target in ("unit", "signed") else {}
        self.encoder = Encoder(config, layouts)
        self.decoder = Decoder(config, layouts)

    def forward(self, image_BCHW: Tensor, chosen: Chosen, sensor: str = "") -> MAEOutput:
        """Reconstruct normalised images [B, C, H, W] of one sensor; see `MAEOutput`."""
        sensor = which(sensor, self.layouts)
        cubes_BNP = chosen.lay(to_cubes(image_BCHW, self.layouts[sensor]))
        encoded_BKD = self.encoder(cubes_BNP, chosen, sensor)
        # the loss is computed in float32 whatever the model runs in
        predicted_BMP = self.decoder(encoded_BKD, chosen, sensor).float()
        source_BNP = chosen.lay(self.source(image_BCHW, sensor)) if self.to_unit else cubes_BNP
        losses = self._losses(predicted_BMP, source_BNP.float(), chosen, self.layouts[sensor])
        shown = chosen.shown_BK.shape[1] if self.config.spectral_sum_loss else 0
        unused = idle(self.encoder.others(sensor) + self.decoder.others(sensor))
        return MAEOutput(torch.stack(losses) + unused, predicted_BMP[:, shown:])

    def _losses(
        self, predicted_BMP: Tensor, source_BNP: Tensor, chosen: Chosen, layout: Layout
    ) -> list[Tensor]:
        tokens = chosen.hidden_BM
        if self.config.spectral_sum_loss:
            tokens = torch.cat([chosen.shown_BK, tokens], 1)
        wanted = targets(gather(source_BNP, tokens), tokens, self.config.target, layout)
        errors = cube_errors(predicted_BMP, wanted, real_voxels(tokens, layout))
        # a sum, not a mean: the divisor is a number of the global batch, which no rank knows alone
        hidden = errors[:, errors.shape[1] - chosen.hidden_BM.shape[1] :]
        losses = [(hidden * chosen.counted(layout)).sum()]
        if self.config.spectral_sum_loss:
            # back to their places: a sum over groups needs all cubes of a place in one row
            off = torch.zeros_like(source_BNP).scatter(
                1, tokens.unsqueeze(-1).expand_as(wanted), predicted_BMP - wanted
            )
            losses.append(
                (spectral_sum_errors(off, layout) * chosen.valid_BS.reshape(-1, layout.places)).sum()
            )
        return losses

    def source(self, image_BCHW: Tensor, sensor: str = "") -> Tensor:
        """Return the cubes [B, N, P] that targets are made from: `unit` and `signed` want [0, 1] whatever the input."""
        sensor = which(sensor, self.layouts)
        scaled = self.to_unit[sensor](image_BCHW) if sensor in self.to_unit else image_BCHW
        return to_cubes(scaled, self.layouts[sensor])


def which(sensor: str, layouts: Mapping[str, Layout]) -> str:
    """Return the sensor meant: the only one where none is named; raises `UnknownNameError` for an unknown one."""
    if not sensor and len(layouts) == 1:
        return next(iter(layouts))
    if sensor not in layouts:
        raise unknown("sensor", sensor, layouts, "the model's layouts")
    return sensor


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())
