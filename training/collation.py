"""Samples to one batch: copied into memory that is used again, with validity and saliency of every place."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.saliency import merge_cells, saliency
from pipeline.sample import HEADER_BYTES, NO_CLASS, Flag, Label, Sample, Scratch
from training.data import Batch, View

_UNHELD = 3
_ALIGNED = 64

Bytes = NDArray[np.uint8]
Place = tuple[int, ...]
"""Of an image in a slot: first byte, then its shape."""


class Room:
    """Memory of batches that nobody holds any more: pages that are new cost as much as what is written to them."""

    def __init__(self) -> None:
        self._known: dict[int, list[Bytes]] = {}
        self._lent: Bytes = np.empty(0, np.uint8)

    def lend(self, memory: Bytes) -> None:
        """Let the images of the next batch lie in given memory, as far as they fit."""
        self._lent = memory

    def take(self, size: int, image: bool) -> Bytes:
        """Return `size` bytes that are free, holding whatever they held, or new ones."""
        if image and size <= len(self._lent):
            taken, self._lent = self._lent[:size], self._lent[size:]
            return taken
        known = self._known.setdefault(size, [])
        for memory in known:
            # tensors and views of an array refer to it: the list, the name here and the call are all others
            if sys.getrefcount(memory) == _UNHELD:
                return memory
        known.append(np.empty(size, np.uint8))
        return known[-1]


class Slots:
    """Memory that loader processes share with this one: images lie there instead of being copied over.

    Which slot a batch is loaded into is told with its step, by the one process that knows what is held still.
    """

    def __init__(self, count: int, size: int) -> None:
        """size: bytes of a slot; none of them is memory before it is written to."""
        self._memory: list[Bytes] = [np.frombuffer(mmap.mmap(-1, size), np.uint8) for _ in range(count)]
        self._away: set[int] = set()

    def tasks(self, steps: Iterable[int]) -> Iterator[tuple[int, int | None]]:
        """Yield each step with a slot that is free, None where all are held."""
        for step in steps:
            free = (n for n in range(len(self._memory)) if n not in self._away and not self._held(n))
            slot = next(free, None)
            self._away |= set() if slot is None else {slot}
            yield step, slot

    def _held(self, slot: int) -> bool:
        # the list and the call refer to it; views and tensors are all others
        return sys.getrefcount(self._memory[slot]) > _UNHELD - 1

    def memory(self, slot: int | None) -> Bytes:
        """Return the memory of a slot, none for None."""
        return np.empty(0, np.uint8) if slot is None else self._memory[slot]

    def hand_over(self, batch: Batch, slot: int | None) -> Handed:
        """Take from a batch the images that lie in its slot: what is left is sent to the training process."""
        image, after = (self._place(lying, slot) for lying in (batch.image_BCHW, batch.after_BCHW))
        left = replace(
            batch,
            # no slice: what is sent of a tensor is all the memory that it lies in
            image_BCHW=torch.empty(0, dtype=torch.int16) if image else batch.image_BCHW,
            after_BCHW=None if after else batch.after_BCHW,
        )
        return Handed(left, slot, image, after)

    def _place(self, image: Tensor | None, slot: int | None) -> Place | None:
        memory = self.memory(slot)
        first = -1 if image is None else image.data_ptr() - memory.ctypes.data
        return (first, *image.shape) if image is not None and 0 <= first < len(memory) else None

    def take_over(self, handed: Handed) -> Batch:
        """Return the batch with its images, whose slot is free when nobody holds them any more."""
        self._away.discard(-1 if handed.slot is None else handed.slot)
        batch, memory = handed.batch, self.memory(handed.slot)
        return replace(
            batch,
            image_BCHW=_lying(memory, handed.image) if handed.image else batch.image_BCHW,
            after_BCHW=_lying(memory, handed.after) if handed.after else batch.after_BCHW,
        )


def _lying(memory: Bytes, place: Place) -> Tensor:
    first, *shape = place
    return torch.from_numpy(memory[first : first + 2 * math.prod(shape)].view(np.int16).reshape(shape))


@dataclass(frozen=True)
class Handed:
    """A batch on its way from a loader process."""

    batch: Batch
    slot: int | None
    image: Place | None
    after: Place | None


def image_bytes(view: View, count: int) -> int:
    """Return how many bytes the images of a batch take at most, those of a second date with them."""
    return 2 * (2 * count * len(view.bands) * view.image_px**2 + HEADER_BYTES + _ALIGNED)


class Rows(Scratch):
    """The arrays of a batch, filled sample by sample.

    As scratch for the next sample, images are decoded where they lie in the batch, if they fill a whole row.
    """

    def __init__(self, count: int, room: Room, scratch: Scratch) -> None:
        """room: where the arrays may lie; scratch: for what is no row of them."""
        self._count, self._room, self._scratch = count, room, scratch
        self._written_over: list[tuple[Bytes, Bytes]] = []
        self._memory: dict[str, Bytes] = {}
        self.keys: list[str] = []
        self.arrays: dict[str, NDArray[Any]] = {}
        self.pairs = 0

    def room(self, name: str, size: int) -> Bytes:
        """Return the bytes of the next row, with those before it for a header; or else of the scratch."""
        array = self.arrays.get(name.partition(".")[0]) if name in self._memory else None
        if array is None or size != HEADER_BYTES + array.nbytes // self._count:
            return self._scratch.room(name, size)
        start = len(self.keys) * (size - HEADER_BYTES)
        place = self._memory[name][start : start + size]
        # the end of the row before, which is finished already
        self._written_over.append((place[:HEADER_BYTES], place[:HEADER_BYTES].copy()))
        return place

    def add(self, sample: Sample, label: NDArray[np.int64]) -> None:
        """Copy into the next row what of a sample does not lie there already."""
        for place, held in self._written_over:
            place[:] = held
        self._written_over.clear()
        given: dict[str, NDArray[Any]] = {
            "pixels": sample.pixels,
            "mask": sample.mask,
            "cells": sample.cells,
            "label": label,
        }
        if sample.after is not None:
            given["after"] = sample.after
            self.pairs += 1
        for name, array in given.items():
            if name not in self.arrays:
                self._make(name, array)
            # numpy leaves alone what is assigned to itself
            self.arrays[name][len(self.keys)] = array
        self.keys.append(sample.key)

    def _make(self, name: str, like: NDArray[Any]) -> None:
        image = name in ("pixels", "after")
        size = HEADER_BYTES + self._count * like.nbytes
        memory = self._room.take(-(-size // _ALIGNED) * _ALIGNED, image)
        # before the first row there is room for what is decoded with it
        self.arrays[name] = memory[HEADER_BYTES:size].view(like.dtype).reshape(self._count, *like.shape)
        if image:
            self._memory[f"{name}.npy.blosc"] = memory


@dataclass(frozen=True)
class Slot:
    """Which batch it is that is put together, and where."""

    step: int = 0
    epoch: int = 0
    rows: Rows | None = None
    """Where its samples lie; None for memory of its own."""


def collate(slot: Slot, looked: Iterable[Sample], view: View, ids: NDArray[np.uint64]) -> Batch:
    """Put samples together to a batch, with validity and saliency of every place.

    looked: each is copied before the next is asked for, so that they may lie in the same memory, one after the other.
    """
    rows = slot.rows or Rows(len(ids), Room(), Scratch())
    for sample in looked:
        rows.add(sample, label_array(sample.label, view))
    merged = merge_cells(rows.arrays["cells"], view.patch_px // view.cell_px)
    return Batch(
        slot.step,
        slot.epoch,
        view.sensor,
        rows.keys,
        ids,
        torch.from_numpy(rows.arrays["pixels"]),
        _valid_places(rows.arrays["mask"], view.patch_px),
        saliency(merged, view.richness_weight),
        torch.from_numpy(rows.arrays["label"]),
        # a pair without its second date is refused by who needs pairs
        torch.from_numpy(rows.arrays["after"]) if rows.pairs == len(ids) else None,
    )


def label_array(label: Label | None, view: View) -> NDArray[np.int64]:
    """Return a sample's label as numbers, -1 for none: [] one class, [class] several, [y, x] a class a pixel."""
    if view.label_kind == "mask":
        shape = (view.image_px, view.image_px)
        codes = np.full(shape, NO_CLASS) if label is None else np.asarray(label)
        return np.where(codes == NO_CLASS, -1, codes.astype(np.int64))
    if view.label_kind == "classes":
        present = np.full(view.classes, -1 if label is None else 0, np.int64)
        present[list(label) if isinstance(label, tuple) else []] = 1
        return present
    return np.asarray(-1 if label is None else label, np.int64)


def _valid_places(mask: NDArray[np.uint8], patch_px: int) -> NDArray[np.bool_]:
    """Tell the places with at least half of their pixels measured.

    mask: [B, y, x]; returns [B, place].
    """
    count, height, width = mask.shape
    valid = np.ones((count, height * width // patch_px**2), bool)
    # few tiles have lost pixels, and which ones is soon known
    found = np.bitwise_or.reduce(mask.reshape(count, -1), 1) & np.uint8(Flag.NODATA) != 0
    lost = (mask[found] & np.uint8(Flag.NODATA)).reshape(-1, height // patch_px, patch_px, width)
    # down the columns first, which processors do many at a time
    lost = np.add.reduce(lost, 2, dtype=np.uint16).reshape(len(lost), valid.shape[1], patch_px).sum(2)
    valid[found] = 2 * lost <= patch_px * patch_px
    return valid
