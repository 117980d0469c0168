"""Samples to one batch: copied into memory that is used again, with validity and saliency of every place."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.saliency import merge_cells, saliency
from pipeline.sample import HEADER_BYTES, NO_CLASS, Flag, Label, Sample, Scratch
from training.data import Batch, View

_UNHELD = 3
_LARGE = {"pixels.npy.blosc": "pixels", "after.npy.blosc": "after"}


class Room:
    """Memory of batches that nobody holds any more: pages that are new cost as much as what is written to them."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[Any, ...], list[NDArray[Any]]] = {}

    def take(self, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
        """Return an array that is free, its numbers those of whatever it held, or a new one."""
        known = self._arrays.setdefault((shape, kind), [])
        for array in known:
            # tensors and views of an array refer to it: the list, the name here and the call are all others
            if sys.getrefcount(array) == _UNHELD:
                return array
        # room before the first row for what is decoded with it
        size = HEADER_BYTES + math.prod(shape) * kind.itemsize
        known.append(np.empty(size, np.uint8)[HEADER_BYTES:].view(kind).reshape(shape))
        return known[-1]


class Rows(Scratch):
    """The arrays of a batch, filled sample by sample.

    As scratch for the next sample, large arrays are decoded where they lie in the batch, if they fill a whole row.
    """

    def __init__(self, count: int, room: Room, scratch: Scratch) -> None:
        """room: where the arrays may lie; scratch: for what is no row of them."""
        self._count, self._room, self._scratch = count, room, scratch
        self._written_over: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
        self.keys: list[str] = []
        self.arrays: dict[str, NDArray[Any]] = {}
        self.pairs = 0

    def room(self, name: str, size: int) -> NDArray[np.uint8]:
        """Return the bytes of the next row, with those before it for a header; or else of the scratch."""
        array = self.arrays.get(_LARGE.get(name, ""))
        if array is None or size != HEADER_BYTES + array.nbytes // self._count:
            return self._scratch.room(name, size)
        start = len(self.keys) * (size - HEADER_BYTES)
        place: NDArray[np.uint8] = array.base[start : start + size]  # type: ignore[index]
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
                self.arrays[name] = self._room.take((self._count, *array.shape), array.dtype)
            # numpy leaves alone what is assigned to itself
            self.arrays[name][len(self.keys)] = array
        self.keys.append(sample.key)


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
