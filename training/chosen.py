"""The cubes of a micro-batch that are shown and predicted, on the device: in rows of equal length, or packed.

Where images show different numbers of cubes, all of them make one packed row: image b's cube n has the index
`b * N + n`, and attention keeps the images apart. Everything else treats each token by itself and need not know.
Shape letters: B batch (1 where packed), S places, N tokens, K shown, M predicted, R tokens of a row, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.attention import Segments
from training.masking import Choice
from training.tokens import Layout
from training.world import to_device

Lengths = tuple[int, ...]
"""Tokens of each image of a packed row."""


@dataclass(frozen=True)
class Chosen:
    """Which cubes the encoder sees and which the decoder predicts."""

    shown_BK: Tensor
    """Token indices, int64."""
    hidden_BM: Tensor
    """Token indices of the cubes to predict, int64."""
    valid_BS: Tensor
    """Places with enough valid pixels, bool; only their cubes carry loss."""
    shown_lengths: Lengths | None = None
    """None where all images show equally many; see `packed`."""
    hidden_lengths: Lengths | None = None

    @classmethod
    def of(cls, choice: Choice, valid_BS: NDArray[np.bool_], part: slice, tokens: int) -> Chosen:
        """Take a part of a batch as it was chosen; tokens: N of one image."""
        shown, predicted = choice.shown_BK[part], choice.predicted_BM[part]
        valid = torch.from_numpy(valid_BS[part])
        if choice.packed:
            # shorter rows are filled up with -1
            return cls.packed([r[r >= 0] for r in shown], [r[r >= 0] for r in predicted], valid, tokens)
        return cls(torch.from_numpy(shown), torch.from_numpy(predicted), valid)

    @classmethod
    def packed(
        cls,
        shown: Sequence[NDArray[np.int64]],
        hidden: Sequence[NDArray[np.int64]],
        valid_BS: Tensor,
        tokens: int,
    ) -> Chosen:
        """Pack arrays of token indices, one an image, into one row; tokens: N of one image."""

        def row(part: Sequence[NDArray[np.int64]]) -> Tensor:
            return torch.from_numpy(np.concatenate([a + b * tokens for b, a in enumerate(part)]))[None]

        lengths = tuple(map(len, shown)), tuple(map(len, hidden))
        return cls(row(shown), row(hidden), valid_BS.reshape(1, -1), *lengths)

    def to(self, device: torch.device) -> Chosen:
        """Return the same on a device."""
        shown, hidden, valid = (to_device(x, device) for x in (self.shown_BK, self.hidden_BM, self.valid_BS))
        return replace(self, shown_BK=shown, hidden_BM=hidden, valid_BS=valid)

    def lay(self, cubes_BNP: Tensor) -> Tensor:
        """Return the cubes of all images [B, N, P] as the rows that the indices count in."""
        return cubes_BNP if self.shown_lengths is None else cubes_BNP.flatten(0, 1)[None]

    @property
    def images(self) -> int:
        """Images of a row."""
        return 1 if self.shown_lengths is None else len(self.shown_lengths)

    @property
    def class_lengths(self) -> Lengths | None:
        """One class token for each image of a packed row."""
        return None if self.shown_lengths is None else (1,) * self.images

    def counted(self, layout: Layout) -> Tensor:
        """Tell which of the predicted cubes carry loss, bool [B, M]."""
        image, place = self.hidden_BM // layout.tokens, self.hidden_BM % layout.places
        return torch.gather(self.valid_BS, 1, image * layout.places + place)


@dataclass(frozen=True)
class Row:
    """How parts of each image's tokens (class token, shown, hidden) stand in one row: image by image where packed."""

    segments: Segments | None = None
    order_R: Tensor | None = None
    """Index into the parts one after the other; None where they already stand right."""

    @classmethod
    def of(cls, parts: Sequence[Lengths | None], device: torch.device) -> Row:
        """Build from the lengths of each part."""
        known = [n for n in parts if n is not None]
        # packed or not is one choice for the batch: a part without lengths speaks for all
        if len(known) < len(parts):
            return cls()
        totals = tuple(int(n) for n in np.sum(known, axis=0))
        owner = np.concatenate([np.repeat(np.arange(len(n)), n) for n in known])
        # stable: within an image the parts keep their order
        order = to_device(torch.from_numpy(np.argsort(owner, kind="stable")), device)
        return cls(Segments(totals, totals, device), order if len(known) > 1 else None)

    def mix(self, x_BRD: Tensor) -> Tensor:
        """Bring parts that stand one after the other, [B, R, D], into the row's order."""
        return x_BRD if self.order_R is None else x_BRD[:, self.order_R]

    def unmix(self, x_BRD: Tensor) -> Tensor:
        """Undo `mix`."""
        # of a permutation argsort is the inverse
        return x_BRD if self.order_R is None else x_BRD[:, self.order_R.argsort()]
