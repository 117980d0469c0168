"""Pictures of a run: what was shown, what was predicted, what was there."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingPackageError
from pipeline.manifest import write_atomically

Curve = Sequence[tuple[int, float]]
"""(step, value), in order of steps."""
Row = Mapping[str, NDArray[np.float32]]
"""Title -> RGB array [y, x, 3], 0 black to 1 white; what is outside is clipped."""


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackageError("pictures need matplotlib; install it with `make setup`.") from error
    # compute nodes have no display
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def reconstruction(rows: Sequence[Row], path: Path) -> Path:
    """Write a PNG with one row an image and one column a named RGB array; all rows have the same titles.

    Returns `path`. Raises `MissingPackageError` without matplotlib.
    """
    plt = _pyplot()
    titles = list(rows[0])
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(2 * len(titles), 2 * len(rows)), squeeze=False
    )
    for line, row in zip(axes, rows, strict=True):
        for axis, title in zip(line, titles, strict=True):
            axis.imshow(np.clip(row[title], 0, 1), interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    return _write(figure, path)


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
