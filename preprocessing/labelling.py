"""What labels a tile: the set's own words about its scene, or the class raster beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from pipeline.config import Config, UserPath
from pipeline.contract import LabelKind
from pipeline.errors import SceneError, did_you_mean
from pipeline.sample import NO_CLASS, Label
from preprocessing.scenes import Scene


class LabelConfig(Config):
    """How tiles are labelled: by what their set says of a scene, or by a class raster beside it."""

    kind: LabelKind = "class"
    """`class`: one a tile; `classes`: several a tile; `mask`: one for every pixel."""
    classes: tuple[str, ...] = Field(min_length=1, max_length=NO_CLASS)
    """Class names in the order of their numbers."""
    first_code: int = Field(default=0, ge=0, le=255)
    """Raster value of the first class; other values outside the list carry no label."""
    codes: tuple[int, ...] = ()
    """Raster value of each class, where they do not follow one another; empty counts from `first_code`."""
    min_share: float = Field(default=0.5, gt=0, le=1)
    """Least share of a tile's pixels its commonest class needs to become the label, and each class of several."""
    table: UserPath | None = None
    """Table in which a set tells classes and splits of its scenes (`metadata.parquet`, a csv), for its reader."""

    @field_validator("classes")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} listed twice; list each once")
        return names

    @field_validator("codes")
    @classmethod
    def _one_a_class(cls, codes: tuple[int, ...], earlier: ValidationInfo) -> tuple[int, ...]:
        classes = earlier.data.get("classes", codes)
        if codes and (len(codes) != len(classes) or len(set(codes)) < len(codes)):
            raise ValueError(
                f"{len(codes)} values for {len(classes)} classes: give each class one of its own"
            )
        return codes


def numbers(codes: NDArray[Any], config: LabelConfig) -> NDArray[np.uint8]:
    """Turn a raster's codes, of any shape, into class numbers; codes of no class become `NO_CLASS`."""
    if codes.dtype.kind == "f":
        # what NaN becomes as a whole number is the processor's choice, the first class on some
        whole = np.isfinite(codes) & (codes == np.floor(codes))
        return np.where(whole, numbers(np.where(whole, codes, 0).astype(np.int64), config), NO_CLASS).astype(
            np.uint8
        )
    # signed: unsigned codes below the first would wrap to large classes
    signed = codes.astype(np.int64)
    if not config.codes:
        found = signed - config.first_code
        return np.where((found < 0) | (found >= NO_CLASS), NO_CLASS, found).astype(np.uint8)
    # a search in sorted codes, no table: codes may be any whole number
    order = np.argsort(config.codes)
    ordered = np.array(config.codes)[order]
    place = np.minimum(np.searchsorted(ordered, signed), len(ordered) - 1)
    return np.where(ordered[place] == signed, order[place], NO_CLASS).astype(np.uint8)


def check(scene: Scene, config: LabelConfig | None) -> Scene:
    """Return the scene; raises `SceneError` where its set gives it classes that were not asked for."""
    given = scene.given.classes
    if config is None or given is None:
        return scene
    for name in given:
        if name not in config.classes:
            raise SceneError(
                f"{scene.location}: class `{name}` is not in `labels.classes`.{did_you_mean(name, config.classes)}"
            )
    if config.kind == "mask" or (config.kind == "class" and len(given) > 1):
        raise SceneError(
            f"{scene.location} has {len(given)} classes as a whole ({', '.join(given)}): set `labels.kind=classes`."
        )
    return scene


def of_scene(given: tuple[str, ...], config: LabelConfig) -> Label | None:
    """Return the label of every tile of a scene whose classes its set gives."""
    found = tuple(sorted(config.classes.index(name) for name in given))
    if config.kind == "classes":
        return found
    return found[0] if found else None


def of_pixels(part: NDArray[np.uint8], config: LabelConfig) -> Label | None:
    """Return the label of a tile from its class numbers [y, x]; None where too little of it has a class."""
    # classes beyond the list, and unlabelled pixels, win nothing
    counts = np.bincount(part.ravel(), minlength=NO_CLASS + 1)[: len(config.classes)]
    if not counts.any():
        return None
    if config.kind == "mask":
        return np.where(part < len(config.classes), part, NO_CLASS).astype(np.uint8)
    enough = np.flatnonzero(counts >= config.min_share * part.size)
    if config.kind == "classes":
        return tuple(int(number) for number in enough)
    return int(counts.argmax()) if len(enough) else None
