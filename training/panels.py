"""Pictures of a run: what was shown, what was predicted, what was there."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingPackageError
from pipeline.manifest import write_atomically

_MARKS = ("tab:red", "tab:orange", "tab:blue", "tab:purple", "tab:green", "tab:brown")
Curve = Sequence[tuple[int, float]]
"""(step, value), in order of steps."""
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Layer:
    """One small picture."""

    values: Floats
    """RGB [y, x, 3], 0 black to 1 white, what is outside clipped; or numbers [y, x], NaN for none."""
    colours: str | None = None
    """Of numbers: matplotlib's name."""
    span: tuple[float, float] | None = None
    """Numbers at the ends of the colours; None: the least and the greatest there are."""


@dataclass(frozen=True)
class Spectra:
    """Reflectance of some pixels over the wavelength."""

    centre_nm: Sequence[float]
    original: Sequence[Floats]
    """One value a band, pixel by pixel."""
    restored: Sequence[Floats]


@dataclass(frozen=True)
class Shown:
    """An image, and what a model made of it."""

    key: str
    layers: Mapping[str, Layer]
    """By title; the first one carries the marks."""
    pixels: Sequence[tuple[int, int]]
    """Row and column of those whose spectra are drawn."""
    spectra: Spectra


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackageError("pictures need matplotlib; install it with `make setup`.") from error
    # compute nodes have no display
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def reconstruction(images: Sequence[Shown], path: Path) -> Path:
    """Write a PNG with one row an image, one column a layer, and spectra of marked pixels; all have the same layers.

    Returns `path`. Raises `MissingPackageError` without matplotlib.
    """
    plt = _pyplot()
    titles = list(images[0].layers)
    widths = [*(1 for _ in titles), 1.6]
    figure, axes = plt.subplots(
        len(images), len(widths), figsize=(1.8 * sum(widths), 1.9 * len(images)), squeeze=False,
        width_ratios=widths, layout="constrained",
    )  # fmt: skip
    for line, image in zip(axes, images, strict=True):
        for axis, title in zip(line, titles, strict=False):
            _draw(axis, image.layers[title])
        for (y, x), colour in zip(image.pixels, _MARKS, strict=False):
            line[0].plot(x, y, "o", color=colour, markeredgecolor="white", markersize=5)
        _draw_spectra(line[-1], image.spectra)
        line[0].set_title(image.key, fontsize=5, loc="left", y=-0.12)
    for axis, title in zip(axes[0], [*titles, "reflectance over nm: original, restored - -"], strict=True):
        axis.annotate(title, (0.5, 1.03), xycoords="axes fraction", ha="center", fontsize=8)
    return _write(figure, path)


def _draw(axis: Any, layer: Layer) -> None:
    low, high = layer.span or (None, None)
    values = np.clip(layer.values, 0, 1) if layer.colours is None else layer.values
    axis.imshow(values, interpolation="nearest", cmap=layer.colours, vmin=low, vmax=high)
    axis.set_axis_off()


def _draw_spectra(axis: Any, spectra: Spectra) -> None:
    for true, restored, colour in zip(spectra.original, spectra.restored, _MARKS, strict=False):
        axis.plot(spectra.centre_nm, true, color=colour, linewidth=1)
        axis.plot(spectra.centre_nm, restored, "--", color=colour, linewidth=1)
    axis.tick_params(labelsize=6)


def curves(lines: Mapping[str, Curve], label: str, path: Path) -> Path:
    """Write a PNG with curves over each other, named in its legend, `label` on the y axis.

    Returns `path`, whose folder is made where it is not there. Raises `MissingPackageError` without matplotlib.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7, 4))
    for name, points in lines.items():
        steps, values = zip(*points, strict=True)
        # a line through one point is invisible
        axis.plot(steps, values, label=name, linewidth=1.2, marker="o" if len(points) == 1 else None)
    axis.set(xlabel="step", ylabel=label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return _write(figure, path)


def _write(figure: Any, path: Path) -> Path:
    # to memory first: a picture is there whole or not at all
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    _pyplot().close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, buffer.getvalue())
