"""Pictures show what they are given, and are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image, pyplot
from matplotlib.colors import to_rgb

from training import panels


def share(picture: Path, colour: str | tuple[float, float, float]) -> float:
    """Return the share of a picture's pixels that have a colour."""
    pixels = image.imread(picture)[..., :3]
    return float((np.abs(pixels - to_rgb(colour)).max(-1) < 0.02).mean())


def flat(*rgb: float) -> np.ndarray:
    return np.broadcast_to(np.array(rgb, np.float32), (8, 8, 3))


def made(key: str, *layers: np.ndarray) -> panels.Shown:
    named = {f"layer {n}": panels.Layer(values) for n, values in enumerate(layers)}
    spectra = panels.Spectra([490.0, 665.0], [np.array([0.1, 0.2])], [np.array([0.1, 0.3])])
    return panels.Shown(key, named, [(4, 4)], spectra)


def test_a_panel_shows_every_image_in_its_colours_with_marks_and_spectra(tmp_path: Path) -> None:
    images = [
        made("a", flat(1, 0, 0), flat(0, 1, 0)),
        made("b", flat(0, 0, 1), flat(0, 3, -1)),  # clipped to the green above it
    ]
    path = panels.reconstruction(images, tmp_path / "new" / "panel.png")
    assert path == tmp_path / "new" / "panel.png"
    red, blue, green = (share(path, c) for c in ((1, 0, 0), (0, 0, 1), (0, 1, 0)))
    assert red == pytest.approx(blue, rel=0.05)
    assert green == pytest.approx(2 * red, rel=0.05)
    assert red > 0.08
    # the mark, and lines of its colour, original and restored
    assert share(path, "tab:red") > 0.0005
    assert list(path.parent.iterdir()) == [path]


def test_numbers_have_the_colours_of_their_span(tmp_path: Path) -> None:
    low, high = ({"n": panels.Layer(np.full((8, 8), value), "gray", (0.0, 1.0))} for value in (0.0, 1.0))
    spectra = panels.Spectra([490.0], [], [])
    paths = [
        panels.reconstruction([panels.Shown("k", layers, [], spectra)], tmp_path / f"{n}.png")
        for n, layers in enumerate((low, high))
    ]
    assert share(paths[0], (0, 0, 0)) > 0.15
    assert share(paths[1], (0, 0, 0)) < 0.05


@pytest.mark.parametrize("points", [[(1, 2.0), (2, 1.0)], [(1, 2.0)]], ids=["curve", "one point"])
def test_every_curve_is_drawn_and_named(tmp_path: Path, points: list[tuple[int, float]]) -> None:
    one = panels.curves({"a": [(0, 0.0), (9, 1.0)]}, "loss", tmp_path / "one.png")
    two = panels.curves({"a": [(0, 0.0), (9, 1.0)], "b": points}, "loss", tmp_path / "two.png")
    assert share(one, "tab:blue") > 0.001
    assert share(one, "tab:orange") == 0
    assert share(two, "tab:orange") > 0
    assert pyplot.get_fignums() == []  # a training of many panels must not keep them all
