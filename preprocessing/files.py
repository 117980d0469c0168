"""Where plain image files lie and what they do not say about themselves: a pattern with fields, and numbers.

A pattern is a path below any folder with fields in braces: `images/{name}.tif`, `{class}/{name}.tif` (class by
folder), `{name}/{name}_{band}.tif` (one file a band). A field stands for one piece of a path, and for the same
text wherever it stands.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from pipeline.config import Config

NO_BAND = "-"
"""Stands among the layers for one that is no band."""
_FIELD = re.compile(r"\{(\w+)\}")


class FilesConfig(Config):
    """Plain image files: where they lie, and what they do not say about themselves."""

    images: str
    """Pattern of the images: `{name}` is a scene, `{band}` makes one file a band, `{class}` and `{split}` label it."""
    layers: tuple[str, ...] = Field(default=(), validate_default=True)
    """Band of each layer of a file in its order, `-` for a layer that is none; empty with `{band}`."""
    labels: str = ""
    """Pattern of the class rasters, with fields of `images`: `labels/{name}.png`; none has no class rasters."""
    label_layer: int = Field(default=1, ge=1)
    """Layer of the class raster, from 1."""
    scale: float = Field(default=1e-4, gt=0)
    """Reflectance per stored unit."""
    offset: float = 0.0
    """Reflectance of a stored 0."""
    nodata: float | None = 0.0
    """Stored number that is no measurement; null where every number is one."""
    level: str
    """What the numbers are: `L1C` at the top of the atmosphere, `L2A` at the surface, or another product's name."""
    gsd_m: float | None = Field(default=None, gt=0)
    """Pixel size in metres of images without georeferencing; null takes the sensor's own."""
    acquired: str = ""
    """Date of all images, ISO 8601, where it is known."""
    licence: str = ""
    """Licence and notice that travel with the data; empty takes the sensor's."""

    @field_validator("images")
    @classmethod
    def _has_name(cls, pattern: str) -> str:
        if "name" not in fields(pattern):
            raise ValueError(f"`{pattern}` has no field {{name}}, which tells scenes apart")
        # fields become groups of a regular expression, whose names hold no number first; `_root` is ours
        wrong = sorted(f for f in fields(pattern) if not f[0].isalpha())
        if wrong:
            raise ValueError(f"field {{{wrong[0]}}} of `{pattern}` must begin with a letter")
        return pattern

    @field_validator("layers")
    @classmethod
    def _layers_or_band(cls, layers: tuple[str, ...], earlier: ValidationInfo) -> tuple[str, ...]:
        by_band = "band" in fields(earlier.data.get("images", ""))
        if by_band == bool(layers):
            raise ValueError(
                "name the bands in a file's order, or one file a band by {band} in `images`: one"
            )
        named = [layer for layer in layers if layer != NO_BAND]
        if len(set(named)) < len(named):
            raise ValueError("a band is listed twice; list each layer once")
        return layers

    @field_validator("labels")
    @classmethod
    def _known_fields(cls, pattern: str, earlier: ValidationInfo) -> str:
        missing = sorted(fields(pattern) - fields(earlier.data.get("images", "")))
        if missing:
            raise ValueError(f"field {{{missing[0]}}} is not in `images`, so that no image tells it")
        return pattern


def fields(pattern: str) -> set[str]:
    """Return the names of a pattern's fields."""
    return set(_FIELD.findall(pattern))


def match(pattern: str, path: Path) -> tuple[Path, dict[str, str]] | None:
    """Match the end of a path; returns the folder before it and the text of every field, or None."""
    # greedy: the pattern is the end of the path, and any folders may stand before it
    found = re.fullmatch(f"(?P<_root>.*/){_expression(pattern)}", path.as_posix())
    if not found:
        return None
    texts = found.groupdict()
    return Path(texts.pop("_root")), texts


def fill(pattern: str, texts: dict[str, str]) -> str:
    """Put the text of every field into a pattern."""
    return _FIELD.sub(lambda m: texts[m[1]], pattern)


def _expression(pattern: str) -> str:
    """Turn a pattern into a regular expression with one group a field."""
    seen: set[str] = set()
    parts = []
    # odd places of the split are fields
    for number, part in enumerate(_FIELD.split(pattern)):
        if number % 2 == 0:
            parts.append(re.escape(part))
        else:
            # no `.+`: a field would swallow folders, and `{class}` become a path
            parts.append(f"(?P={part})" if part in seen else f"(?P<{part}>[^/]+)")
            seen.add(part)
    return "".join(parts)
