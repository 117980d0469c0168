"""The encoder as dense tasks of other libraries take it: images in, a list of feature maps out, and what they are.

The attributes are those that timm's `features_only` models have, that segmentation-models-pytorch asks of them, and
that TerraTorch asks of a backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .model import Groups, SpectralBackbone


class FeatureInfo:
    """What each map is, as timm tells it."""

    def __init__(self, records: Sequence[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info, self.out_indices = list(records), tuple(out_indices)

    def channels(self, index: int | None = None) -> Any:
        """Return the channels of each map, or of one."""
        return self.get("num_chs", index)

    def reduction(self, index: int | None = None) -> Any:
        """Return how many pixels a cell of each map is wide, or of one."""
        return self.get("reduction", index)

    def module_name(self, index: int | None = None) -> Any:
        """Return the module that each map comes from, or one."""
        return self.get("module", index)

    def get(self, key: str, index: int | None = None) -> Any:
        """Return an entry of all maps, or of one."""
        found = [record[key] for record in self.info]
        return found if index is None else found[index]

    def get_dicts(self, keys: Sequence[str] | None = None, out_indices: Any = None) -> list[dict[str, Any]]:
        """Return the records of maps, all of them or some by their place in the list."""
        chosen = self.info if out_indices is None else [self.info[i] for i in out_indices]
        return [dict(r) if keys is None else {k: r[k] for k in keys} for r in chosen]

    def __len__(self) -> int:
        """Return the number of maps."""
        return len(self.info)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the record of a map."""
        return self.info[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the records."""
        return iter(self.info)


class FeatureMaps(nn.Module):
    """A backbone whose forward pass returns a list of maps [B, channels, y, x]."""

    output_fmt = "NCHW"

    def __init__(
        self, backbone: SpectralBackbone, out_indices: int | Sequence[int] = 4, groups: Groups = "mean"
    ) -> None:
        """out_indices, groups: as `SpectralBackbone.feature_maps` takes them; `keep` has no place in a map."""
        super().__init__()
        if groups == "keep":
            raise ValueError("maps of other libraries have no axis for spectral groups: take mean or concat.")
        self.backbone, self.groups = backbone, groups
        self.out_indices = backbone.indices(out_indices)
        self._tell([backbone.patch_size] * len(self.out_indices))

    def _tell(self, strides_px: Sequence[int]) -> None:
        plan = self.backbone.plan
        channels = plan.width * (len(plan.groups) if self.groups == "concat" else 1)
        records = [
            {"num_chs": channels, "reduction": stride, "module": f"blocks.{block}", "index": number}
            for number, (block, stride) in enumerate(zip(self.out_indices, strides_px, strict=True))
        ]
        self.feature_info = FeatureInfo(records, self.out_indices)
        self.out_channels = self.feature_info.channels()

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the maps of images [B, C, H, W], in the order of `out_indices`."""
        return self.backbone.feature_maps(image_BCHW, self.out_indices, self.groups)


class Pyramid(FeatureMaps):
    """The same with cells of 4, 8, 16 and 32 px, resampled without weights, for decoders made for convolutions."""

    STRIDES_PX = (4, 8, 16, 32)

    def __init__(
        self, backbone: SpectralBackbone, stages: Sequence[int] = range(4), groups: Groups = "mean"
    ) -> None:
        """stages: which of the four cells; each is of its own depth."""
        # of fewer than four blocks the first stands for more than one stage
        blocks = backbone.indices([max(backbone.plan.depth * (s + 1) // 4, 1) - 1 for s in stages])
        super().__init__(backbone, blocks, groups)
        self.strides_px = [self.STRIDES_PX[stage] for stage in stages]
        # again: the class above told of cells of one patch
        self._tell(self.strides_px)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the maps of images [B, C, H, W], from the finest cells to the coarsest."""
        sides = [max(self.backbone.plan.image_px // stride, 1) for stride in self.strides_px]
        return [
            # antialias: from 8 to 32 px bilinear alone reads 2 of 4 cells a side and drops the others
            F.interpolate(found, size=(side, side), mode="bilinear", antialias=True)
            for found, side in zip(super().forward(image_BCHW), sides, strict=True)
        ]
