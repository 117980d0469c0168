"""What a masked autoencoder does with images, ready to be drawn: what it sees, what guides the mask, what it predicts.

All hidden cubes are predicted here, also where training reconstructs a share of them.
Shape letters: B batch, C bands, H W pixels, S places, T spectral groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.contract import normalisation
from pipeline.sample import NODATA
from training import masking
from training.chosen import Chosen
from training.data import Batch
from training.inputs import SensorInput
from training.masking import Choice
from training.model import SpatialSpectralMAE
from training.panels import Layer, Shown, Spectra
from training.targets import picture
from training.tokens import Rescale, to_cubes
from training.world import World, to_device

Pixel = tuple[int, int]
"""Row and column."""


class Masked(Protocol):
    """A pretraining, as far as it is looked at."""

    inputs: dict[str, SensorInput]
    model: SpatialSpectralMAE
    world: World

    def draw(self, batch: Batch) -> masking.Draw:
        """Return what decides the masks of a batch at its step."""


def whole(work: Masked, batch: Batch) -> Choice:
    """Choose the shown cubes of a batch as training does at its step, with every hidden one predicted."""
    draw = work.draw(batch)
    # `partial` is about which of the hidden are predicted; these are hidden as by mask_salient
    policy = "mask_salient" if draw.config.policy == "partial" else draw.config.policy
    every = draw.config.model_copy(update={"reconstruct": 1.0, "policy": policy})
    return masking.choose(replace(draw, config=every), batch.valid_BS)


@torch.no_grad()
def look(
    work: Masked, module: nn.Module, batch: Batch, count: int, pixels: Sequence[Pixel] = ()
) -> list[Shown]:
    """Return the first images of a batch as the model sees and restores them; collective under ZeRO-3.

    pixels: whose spectra are drawn; by default those in the middle of the most, the middling and the least salient place.
    """
    mine, choice = work.inputs[batch.sensor], whole(work, batch)
    part = slice(0, count)
    image_BCHW = mine.normaliser(to_device(batch.image_BCHW[part], work.world.device))
    chosen = Chosen.of(choice, batch.valid_BS, part, mine.layout.tokens).to(work.world.device)
    predicted = module(image_BCHW, chosen, batch.sensor).predicted_BMP
    target, source = work.model.config.target, work.model.source(image_BCHW, batch.sensor)
    restored = picture(source, chosen, predicted, target, mine.layout)
    # targets of unit scale are made from images of unit scale
    restored = restored if work.model.to_unit else mine.to_unit(restored)
    unit_BCHW = mine.to_unit(image_BCHW)
    seen = picture(to_cubes(unit_BCHW, mine.layout), chosen, None, target, mine.layout)
    found = _Found(mine, batch, choice, unit_BCHW.cpu(), restored.cpu(), seen.cpu())
    return [found.shown(number, pixels) for number in range(len(image_BCHW))]


@dataclass(frozen=True)
class _Found:
    """A batch, and what became of it; images on the scale of `minmax`."""

    input: SensorInput
    batch: Batch
    choice: Choice
    original_BCHW: Tensor
    restored_BCHW: Tensor
    seen_BCHW: Tensor

    def shown(self, number: int, pixels: Sequence[Pixel]) -> Shown:
        """Return the layers and spectra of one image."""
        places = tuple(pixels) or self._pixels(number)
        layers = {
            "true colour": Layer(self._rgb(self.original_BCHW[number])),
            **self._indices(number),
            "saliency": Layer(self._saliency(number), "magma", None),
            "share shown": Layer(self._shares(number), "gray", (0.0, 1.0)),
            "shown": Layer(self._rgb(self.seen_BCHW[number])),
            "reconstructed": Layer(self._rgb(self.restored_BCHW[number])),
            # one scale for all panels, so that runs can be compared by eye
            "error": Layer(self._error(number), "inferno", (0.0, 0.25)),
        }
        return Shown(self.batch.keys[number], layers, places, self._spectra(number, places))

    def _rgb(self, image_CHW: Tensor) -> NDArray[np.float32]:
        return image_CHW[self.input.record.rgb()].permute(1, 2, 0).numpy()

    def _indices(self, number: int) -> dict[str, Layer]:
        """Return the set's indices of reflectance, those whose bands the model reads."""
        contract, stored = self.input.record.contract, self.batch.image_BCHW[number].numpy()
        measured = (stored != NODATA).all(0)
        of_band = dict(zip(self.input.record.bands, stored.astype(np.float32) * contract.scale, strict=True))
        found = {}
        for name in contract.indices:
            bands = contract.index_bands[name]
            if set(bands) <= of_band.keys():
                value = contract.index(name)(*(of_band[band] for band in bands))
                found[name] = Layer(np.where(measured, value, np.nan), "RdYlGn", (-1.0, 1.0))
        return found

    def _saliency(self, number: int) -> NDArray[np.float64]:
        side = self.input.layout.side
        saliency: NDArray[np.float64] = self.batch.saliency_BS[number]
        return saliency.reshape(side, side)

    def _shares(self, number: int) -> NDArray[np.float64]:
        """Return the share of the spectral groups that is shown at each place, [y, x]."""
        layout, shown = self.input.layout, self.choice.shown_BK[number]
        counted = np.bincount(shown[shown >= 0] % layout.places, minlength=layout.places)
        return (counted / layout.groups).reshape(layout.side, layout.side)

    def _error(self, number: int) -> NDArray[np.float32]:
        """Return the mean over the bands of how far the image is off, on the scale of [0, 1]."""
        return (self.restored_BCHW[number] - self.original_BCHW[number]).abs().mean(0).numpy()

    def _pixels(self, number: int) -> tuple[Pixel, ...]:
        # stable: of equal saliency the same pixels are drawn at every step
        layout, order = self.input.layout, np.argsort(self.batch.saliency_BS[number], kind="stable")
        half, wanted = layout.patch_px // 2, (order[-1], order[len(order) // 2], order[0])
        at = (divmod(int(place), layout.side) for place in wanted)
        return tuple((y * layout.patch_px + half, x * layout.patch_px + half) for y, x in at)

    def _spectra(self, number: int, pixels: Sequence[Pixel]) -> Spectra:
        record = self.input.record
        waves = [record.contract.bands[i].centre_nm for i in record.contract.band_positions(record.bands)]
        to_reflectance = Rescale(
            normalisation("minmax", record.statistics), normalisation("none", record.statistics)
        )
        both = to_reflectance(torch.stack([self.original_BCHW[number], self.restored_BCHW[number]])).numpy()
        original, restored = ([image[:, y, x] for y, x in pixels] for image in both)
        return Spectra(waves, original, restored)
