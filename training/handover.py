"""Weights of one model for another: by name, with position tables interpolated and everything else told.

Places are interpolated bicubically, spectral groups linearly by wavelength. Nothing is dropped silently: what was
interpolated, what begins anew and what was left out is listed.
Shape letters: T spectral groups, S places, N = T * S tokens, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import ContractError
from training import checkpoint, origins
from training.architecture import ModelConfig
from training.inputs import SensorInput
from training.spectral_backbone.codes import resize_places
from training.tokens import Layout

Tables = Literal["exact", "interpolate", "reinit"]
_TABLE = re.compile(r"(?P<stem>(?:.+\.)?positions)\.(?P<kind>spatial|spectral|joint)\.(?P<key>\w+)\.weight")
_OWN = re.compile(
    r"(?P<stem>(?:.+\.)?(?:embed|leave)\.(?P<sensor>\w+))\.(?P<group>\d+)\.(?P<last>weight|bias)"
)


@dataclass(frozen=True)
class Origin:
    """Trained weights, and how the images they were trained on were cut into cubes."""

    weights: Mapping[str, Tensor]
    layouts: Mapping[str, Layout]
    """By sensor."""

    @classmethod
    def of(cls, folder: Path, prefix: str = "") -> Origin:
        """Read a checkpoint or export; prefix: of the weights' names, which is taken off."""
        state = checkpoint.read_state(folder)
        config = ModelConfig.model_validate(state.config["model"])
        layouts = {name: SensorInput.of(record, config).layout for name, record in state.data.sensors.items()}
        return cls(origins.read_weights(folder, prefix), layouts)

    def tables(self, stem: str, kind: str) -> dict[str, Tensor]:
        """Return the tables of a kind by what they belong to: a side in patches, or a sensor."""
        found = {name: _TABLE.fullmatch(name) for name in self.weights}
        return {
            m["key"]: self.weights[name]
            for name, m in found.items()
            if m and (m["stem"], m["kind"]) == (stem, kind)
        }


@dataclass
class Handover:
    """What a model takes over, and what became of the rest."""

    values: dict[str, Tensor] = field(default_factory=dict)
    interpolated: list[str] = field(default_factory=list)
    anew: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def told(self) -> list[str]:
        """Return one line for each weight that was not simply copied."""
        kinds = {"interpolated": self.interpolated, "begins anew": self.anew, "left out": self.left_out}
        return [f"{kind}: {line}" for kind, lines in kinds.items() for line in lines]

    def require_exact(self, where: str) -> None:
        """Raise `ContractError` listing every difference, unless all weights fit as they are."""
        if self.interpolated or self.anew:
            raise ContractError(
                f"the weights in {where} do not fit this model: {'; '.join([*self.interpolated, *self.anew])}. Set"
                " handover=interpolate to take over what can be, or handover=reinit to begin such tables anew."
            )


def hand_over(origin: Origin, model: nn.Module, layouts: Mapping[str, Layout], tables: Tables) -> Handover:
    """Load into `model` what fits of the origin's weights, and tell what became of each; layouts: the model's.

    A table of another size or of other bands is interpolated, or begins anew where `tables` is `reinit`. With `exact`
    nothing is loaded where anything differs: `Handover.require_exact` says so.
    """
    result, used = Handover(), set()
    for name, wanted in model.state_dict().items():
        source, value, how = _find(name, wanted, origin, layouts)
        if how and tables == "reinit":
            value, how = None, f"reinit, instead of {how}"
        if value is None:
            result.anew.append(f"{name} ({how})")
            continue
        used.add(source)
        result.values[name] = value
        if how:
            result.interpolated.append(f"{name} ({how})")
    result.left_out += sorted(set(origin.weights) - used)
    if tables != "exact" or not (result.interpolated or result.anew):
        # strict would refuse what begins anew; `result` tells of each
        model.load_state_dict(result.values, strict=False)
    return result


_Found = tuple[str, Tensor | None, str]
"""Name in the origin, value or None, and how it was changed or why there is none."""


def _find(name: str, wanted: Tensor, origin: Origin, layouts: Mapping[str, Layout]) -> _Found:
    table, own = _TABLE.fullmatch(name), _OWN.fullmatch(name)
    if table:
        return _table(table, origin, layouts)
    source = _same_group(own, origin, layouts) if own else name
    there = origin.weights.get(source)
    if there is None:
        return source, None, "the weights hold nothing of this name and these bands"
    if there.shape != wanted.shape:
        return source, None, f"{_shape(there)} in the weights, {_shape(wanted)} here"
    return source, there, ""


def _shape(x: Tensor) -> str:
    return " x ".join(map(str, x.shape))


def _same_group(own: re.Match[str], origin: Origin, layouts: Mapping[str, Layout]) -> str:
    """Return the name of the projection of the same bands, wherever they stand in the list of groups."""
    sensor, group = own["sensor"], int(own["group"])
    there = _groups(origin.layouts[sensor]) if sensor in origin.layouts else []
    mine = _groups(layouts[sensor])[group]
    number = there.index(mine) if mine in there else -1
    return f"{own['stem']}.{number}.{own['last']}"


def _groups(layout: Layout) -> list[tuple[object, ...]]:
    """Return what tells the groups of a layout apart: the wavelengths of their bands."""
    return [tuple(layout.waves_nm[c] if layout.waves_nm else c for c in m) for m in layout.members]


def _table(match: re.Match[str], origin: Origin, layouts: Mapping[str, Layout]) -> _Found:
    stem, kind, key = match["stem"], match["kind"], match["key"]
    there = origin.tables(stem, kind)
    if not there:
        return match[0], None, "the weights hold no such table"
    if kind == "spatial":
        # the nearest in size: the least of it is interpolated
        side = key if key in there else min(there, key=lambda other: abs(int(other) - int(key)))
        value, how = _resize(there[side], int(key))
        return f"{stem}.spatial.{side}.weight", value, how
    # a sensor that is new takes over from the one that is there
    sensor = key if key in there else next(iter(there))
    source, old, new = f"{stem}.{kind}.{sensor}.weight", origin.layouts[sensor], layouts[key]
    if kind == "spectral":
        value, how = _regroup(there[sensor], old, new)
        return source, value, how
    # a joint table is one table of places for each group
    by_group = [_resize(table_SD, new.side) for table_SD in torch.split(there[sensor], old.places)]
    value, how = _regroup(torch.stack([resized for resized, _ in by_group]), old, new)
    return source, value.flatten(0, 1), ", ".join(filter(None, [by_group[0][1], how]))


def _resize(table_SD: Tensor, side: int) -> tuple[Tensor, str]:
    """Interpolate a table of places bicubically to `side` x `side`."""
    old = round(len(table_SD) ** 0.5)
    if old == side:
        return table_SD, ""
    return resize_places(table_SD, side), f"{old} x {old} -> {side} x {side} places, bicubic"


def _regroup(table_Tx: Tensor, old: Layout, new: Layout) -> tuple[Tensor, str]:
    """Interpolate a table of groups linearly by mean wavelength; beyond the ends the nearest is taken."""
    if _groups(old) == _groups(new):
        return table_Tx, ""
    before, after = _centres_nm(old), _centres_nm(new)
    # `np.interp` wants ascending points and says nothing where they are not
    order = np.argsort(before)
    # unit vectors, interpolated, are the matrix that does the same to any table
    rows = [np.interp(after, before[order], one) for one in np.eye(len(before))]
    share_to_from = torch.from_numpy(np.stack(rows, axis=1)).to(table_Tx.dtype)
    value = torch.tensordot(share_to_from, table_Tx[torch.from_numpy(order)], dims=1)
    return value, f"groups at {_nm(before)} -> {_nm(after)}, linear by wavelength"


def _centres_nm(layout: Layout) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([np.mean([layout.waves_nm[c][0] for c in m]) for m in layout.members])


def _nm(centres_nm: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    return ", ".join(f"{c:.0f}" for c in centres_nm) + " nm"
