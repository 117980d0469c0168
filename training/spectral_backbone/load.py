"""From an exported folder to a module: the weights, positions and normalisation that some images need.

Shape letters: T spectral groups, S places, N = T * S tokens, C bands, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .bands import Asked, Band, Fit, Known, fit
from .codes import group_codes, group_shares, place_codes, resize_places, wave_features
from .model import Plan, Scaling, SpectralBackbone

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class BackboneError(ValueError):
    """A folder that is no export, or is asked for what it does not have."""


def load_backbone(
    folder: str | Path,
    sensor: str | None = None,
    bands: Asked | None = None,
    adapt: bool = False,
    image_px: int | None = None,
) -> SpectralBackbone:
    """Return the exported encoder for images of one sensor, in evaluation mode on the CPU.

    sensor: which, where the weights know several. bands: what the images hold, channel by channel; without, the
    weights' own. adapt: take bands that differ, as far as that is sound; `backbone.adapted` tells what was done.
    image_px: side of the images; positions are interpolated where it is not that of the training.
    Raises `BandMismatch` with a line for each band where bands differ, and `BackboneError` for all else.
    """
    at = Path(folder)
    config, weights = _config(at), _weights(at)
    name, record = _sensor(config, sensor, at)
    found = fit(_known(config, name, record), bands, adapt)
    plan = _plan(config, record, found, image_px)
    backbone = SpectralBackbone(plan, _scaling(record, found))
    backbone.config, backbone.adapted = config, found.told + _told(record, plan)
    try:
        # assigned, not copied: the drawn weights that it replaces need no care, wherever they are
        backbone.load_state_dict(_state(weights, config, name, found, plan), assign=True)
    except (RuntimeError, KeyError) as error:
        raise BackboneError(f"{at / WEIGHTS} does not fit {CONFIG}: {error}. Export it again.") from error
    return backbone.eval()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(config["format_version"])
    except FileNotFoundError as error:
        raise BackboneError(
            f"{path} is missing: give the folder that `training/export.py` wrote, or export the run again."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BackboneError(
            f"{path} is no configuration of an export ({error}). Export the run again."
        ) from error
    if version > FORMAT_VERSION:
        raise BackboneError(
            f"{folder} has format {version}; this code reads up to {FORMAT_VERSION}. Take the package"
            " `spectral_backbone` that lies in the folder."
        )
    return config


def _weights(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BackboneError(f"{folder / WEIGHTS} cannot be read ({error}). Export the run again.") from error


def _sensor(config: Mapping[str, Any], asked: str | None, folder: Path) -> tuple[str, dict[str, Any]]:
    sensors: dict[str, dict[str, Any]] = config["sensors"]
    if asked is None and len(sensors) == 1:
        return next(iter(sensors.items()))
    if asked not in sensors:
        raise BackboneError(
            f"{folder} knows images of {', '.join(sensors)}, not of {asked}: give sensor= one of those."
        )
    return str(asked), sensors[str(asked)]


def _known(config: Mapping[str, Any], name: str, record: Mapping[str, Any]) -> Known:
    bands = tuple(Band(b["name"], b["centre_nm"], b["width_nm"]) for b in record["bands"])
    names = [b.name for b in bands]
    groups = tuple(tuple(names.index(n) for n in members) for members in record["groups"])
    by_wavelength = config["architecture"]["spectral_position"] == "wavelength"
    # a projection of its own belongs to a group's bands, wherever they are placed
    return Known(name, bands, groups, by_wavelength and record["shared_projection"])


def _plan(config: Mapping[str, Any], record: Mapping[str, Any], found: Fit, image_px: int | None) -> Plan:
    model, px = config["architecture"], image_px or record["image_px"]
    if px % model["patch_px"]:
        raise BackboneError(f"image_px {px} is no multiple of the patch, {model['patch_px']} px.")
    return Plan(
        width=model["width"],
        depth=model["depth"],
        heads=model["heads"],
        patch_px=model["patch_px"],
        image_px=px,
        groups=found.groups,
        bands=found.names,
        shared=record["shared_projection"],
        class_token=model["class_token"],
        trained_positions=model["positions"] != "sincos",
    )


def _told(record: Mapping[str, Any], plan: Plan) -> tuple[str, ...]:
    old = record["image_px"] // plan.patch_px
    return () if old == plan.side else (f"positions: {old} x {old} -> {plan.side} x {plan.side} places",)


def _scaling(record: Mapping[str, Any], found: Fit) -> Scaling:
    """Return the normalisation of each channel in the groups; of a new band, interpolated by wavelength."""
    told = record["normalisation"]
    known = {b["name"]: n for n, b in enumerate(record["bands"])}
    centres_nm = [b["centre_nm"] for b in record["bands"]]

    def of(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(
            _between(band.centre_nm or 0.0, centres_nm, values)
            if found.kept is None
            else values[known[band.name]]
            for band in found.bands
        )

    return Scaling(of(told["shift"]), of(told["span"]), told["clip"], told["scale"], told["nodata"])


def _between(at: float, points: Sequence[float], values: Sequence[float]) -> float:
    """Interpolate linearly; beyond the ends the nearest value is taken."""
    row = sorted(zip(points, values, strict=True))
    for (left, low), (right, high) in pairwise(row):
        if left <= at <= right:
            # two bands of one wavelength must not divide by 0
            return low + (high - low) * (at - left) / ((right - left) or 1.0)
    return row[0][1] if at < row[0][0] else row[-1][1]


def _state(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], sensor: str, found: Fit, plan: Plan
) -> dict[str, Tensor]:
    """Return the weights that images of one sensor and some bands need, under the module's names."""
    # what all sensors share; embeddings and positions are picked for the one that is asked for
    state = {n: v for n, v in weights.items() if n.split(".")[0] in ("blocks", "norm", "class_token")}
    sources = ["embed.shared"] if plan.shared else [f"embed.{sensor}.{t}" for t in found.kept or ()]
    for number, source in enumerate(sources):
        state |= {f"embed.{number}.{last}": weights[f"{source}.{last}"] for last in ("weight", "bias")}
    joint = f"positions.joint.{sensor}.weight"
    if joint in weights:
        state["positions"] = _joint(weights[joint], config["sensors"][sensor], found, plan)
        return state
    places_SD = _places(weights, config, sensor, plan)
    groups_TD = _groups(weights, config, sensor, found)
    # added up once: the module then needs neither tables nor wavelengths
    state["positions"] = (groups_TD[:, None] + places_SD).flatten(0, 1)
    return state


def _joint(table_ND: Tensor, record: Mapping[str, Any], found: Fit, plan: Plan) -> Tensor:
    # a joint table is one table of places for each group
    by_group = table_ND.view(len(record["groups"]), -1, plan.width)
    return torch.cat([resize_places(by_group[t], plan.side) for t in found.kept or ()])


def _places(weights: Mapping[str, Tensor], config: Mapping[str, Any], sensor: str, plan: Plan) -> Tensor:
    if config["architecture"]["positions"] == "sincos":
        return place_codes(plan.side, plan.width)
    trained = config["sensors"][sensor]["image_px"] // plan.patch_px
    return resize_places(weights[f"positions.spatial.{trained}.weight"], plan.side)


def _groups(weights: Mapping[str, Tensor], config: Mapping[str, Any], sensor: str, found: Fit) -> Tensor:
    model = config["architecture"]
    if model["spectral_position"] == "wavelength":
        return _by_wavelength(weights, found)
    kept = list(found.kept or ())
    if model["positions"] == "sincos":
        return group_codes(len(config["sensors"][sensor]["groups"]), model["width"])[kept]
    return weights[f"positions.spectral.{sensor}.weight"][kept]


def _by_wavelength(weights: Mapping[str, Tensor], found: Fit) -> Tensor:
    """Return the positions of groups [T, D]: the mean over their bands of a function of wavelength and width."""
    x_CF = wave_features([(b.centre_nm or 0.0, b.width_nm or 0.0) for b in found.bands])
    (w1, b1), (w2, b2) = (
        # 0 and 2 of a Sequential: the GELU between them has no weights
        (weights[f"positions.by_wave.{n}.weight"], weights[f"positions.by_wave.{n}.bias"])
        for n in (0, 2)
    )
    ends = torch.tensor([0, *(len(g) for g in found.groups)]).cumsum(0).tolist()
    members = [range(start, end) for start, end in pairwise(ends)]
    return group_shares(members, len(found.bands)) @ F.linear(F.gelu(F.linear(x_CF, w1, b1)), w2, b2)
