"""From cubes to the model's width and back: one projection for all groups, or one for each group of each sensor.

Shape letters: B batch, K tokens, P voxels of the largest cube, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.tokens import Layout

_SHARED = "shared"


class Projections(nn.ModuleDict):
    """Linear maps under `shared`, or by sensor and group; each is called for every token, and the right one is kept.

    Sorting tokens by group would save a few percent of the products, and make shapes depend on the masks.
    """

    def __init__(self, layouts: Mapping[str, Layout], linear: Callable[[int], nn.Linear]) -> None:
        """linear: voxels of a cube -> the map."""
        super().__init__()
        self.layouts = dict(layouts)
        for name, layout in layouts.items():
            if not layout.shared:
                each = (linear(layout.voxels_of(t)) for t in range(layout.groups))
                self[name] = nn.ModuleList(each)
            elif _SHARED not in self:
                self[_SHARED] = linear(layout.voxels)

    def choose(self, apply: Callable[[nn.Linear], Tensor], tokens_BK: Tensor, sensor: str) -> Tensor:
        """Return for each token what `apply` gives with the map of its group, [B, K, ...]."""
        layout = self.layouts[sensor]
        if layout.shared:
            return apply(self[_SHARED])  # type: ignore[arg-type]
        group_BK1 = (tokens_BK % layout.tokens // layout.places).unsqueeze(-1)
        first, *rest = (apply(linear) for linear in self[sensor].children())  # type: ignore[arg-type]
        for group, out in enumerate(rest, start=1):
            first = torch.where(group_BK1 == group, out, first)
        return first

    def others(self, sensor: str) -> list[nn.Module]:
        """Return the maps that images of `sensor` leave alone."""
        mine = _SHARED if self.layouts[sensor].shared else sensor
        found = [part for name, part in self.items() if name != mine]
        return [m for part in found for m in (part if isinstance(part, nn.ModuleList) else [part])]


class Embedding(Projections):
    """Cubes to tokens."""

    def __init__(self, layouts: Mapping[str, Layout], width: int) -> None:
        super().__init__(layouts, lambda voxels: nn.Linear(voxels, width))

    def forward(self, cubes_BKP: Tensor, tokens_BK: Tensor, sensor: str) -> Tensor:
        """Embed cubes [B, K, P], whose token indices tell their groups, to [B, K, D]."""

        def embed(linear: nn.Linear) -> Tensor:
            # a smaller cube is filled up with zeros, which its own map has no weights for
            real = cubes_BKP[..., : linear.in_features]
            out: Tensor = linear(real.to(linear.weight.dtype))
            return out

        return self.choose(embed, tokens_BK, sensor)


class Head(Projections):
    """Tokens to voxels."""

    def __init__(self, layouts: Mapping[str, Layout], width: int) -> None:
        super().__init__(layouts, lambda voxels: nn.Linear(width, voxels))

    def forward(self, x_BKD: Tensor, tokens_BK: Tensor, sensor: str) -> Tensor:
        """Predict the voxels [B, K, P] of tokens [B, K, D], zeros beyond those of a smaller cube."""
        voxels = self.layouts[sensor].voxels

        def predict(linear: nn.Linear) -> Tensor:
            return F.pad(linear(x_BKD), (0, voxels - linear.out_features))

        return self.choose(predict, tokens_BK, sensor)
