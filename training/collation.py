"""Samples to one batch: copied into memory that is used again, with validity and saliency of every place."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.saliency import merge_cells, saliency
from pipeline.sample import NO_CLASS, Flag, Label, Sample
from training.data import Batch, View

_UNHELD = 3


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
        known.append(np.empty(shape, kind))
        return known[-1]


@dataclass(frozen=True)
class Slot:
    """Which batch it is that is put together, and where."""

    step: int = 0
    epoch: int = 0
    room: Room = field(default_factory=Room)
    """Where its arrays may lie."""


def collate(slot: Slot, looked: Iterable[Sample], view: View, ids: NDArray[np.uint64]) -> Batch:
    """Put samples together to a batch, with validity and saliency of every place.

    looked: each is copied before the next is asked for, so that they may lie in the same memory, one after the other.
    """
    rows = _Rows(len(ids), slot.room)
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


class _Rows:
    """The arrays of a batch, filled sample by sample."""

    def __init__(self, count: int, room: Room) -> None:
        self._count, self._room = count, room
        self.keys: list[str] = []
        self.arrays: dict[str, NDArray[Any]] = {}
        self.pairs = 0

    def add(self, sample: Sample, label: NDArray[np.int64]) -> None:
        """Copy a sample into the next row."""
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
            self.arrays[name][len(self.keys)] = array
        self.keys.append(sample.key)


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
    lost = (mask & np.uint8(Flag.NODATA)).reshape(count, height // patch_px, patch_px, width)
    # down the columns first, which processors do many at a time
    lost = np.add.reduce(lost, 2, dtype=np.uint16).reshape(count, -1, patch_px).sum(2)
    return np.asarray(2 * lost <= patch_px * patch_px)
