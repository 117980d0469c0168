"""One reader a product family: finds its products below a folder and describes each as a `Scene`.

Adding a source is one file here and one line in `READERS`. A reader reads metadata only, never pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.sensors import Sensor
from preprocessing.scenes import Scene


@dataclass(frozen=True)
class Request:
    """What a run wants of every scene."""

    sensor: Sensor
    bands: tuple[str, ...]
    """Band names of the sensor, in the order to store."""
    gsd_m: float | None = None
    """Wanted pixel size in metres; None takes each band's finest file."""
    offset: str = "auto"
    """`auto` reads the product's own offset, `applied` uses none, `not_applied` insists on the product's."""


@dataclass(frozen=True)
class Reader:
    """One product family."""

    name: str
    sensors: tuple[str, ...]
    """Keys in `SENSORS` this reader makes scenes of."""
    find: Callable[[Path], Sequence[Path]]
    """List the products at or below a folder, sorted; empty where there are none."""
    open: Callable[[Path, Request], Scene]
    """Describe one product; raises `SceneError` naming the file and the reason it cannot be used."""
