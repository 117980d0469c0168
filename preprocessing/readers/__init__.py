"""One reader a product family: finds its products below a folder and describes each as a `Scene`.

Adding a source is one file here and one line in `READERS`. A reader reads metadata only, never pixels.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import ConfigError, MissingInputError, unknown
from preprocessing.readers import (
    bigearthnet,
    fmow_sentinel,
    geotiff,
    landsat,
    oscd,
    sentinel2,
    sentinel2_aws,
    stac,
    stac_items,
)
from preprocessing.readers.product import Reader, Request

__all__ = ["READERS", "Reader", "Request", "discover"]


def discover(root: Path, request: Request, reader: str = "auto") -> list[tuple[Reader, Path]]:
    """List the products at or below `root` that can hold scenes of the requested sensor, each with its reader.

    reader: a key in `READERS`, or `auto` to ask every reader of the sensor.
    Sorted by path, which is absolute. Raises `MissingInputError` where there is nothing to read.
    """
    # a catalog is a file, and no product of another kind is json
    by_kind = "stac" if reader == "auto" and root.suffix in stac_items.ENDINGS else reader
    asked = _asked(request, by_kind)
    # absolute, because workers may run elsewhere; not resolved, because a link's name may carry meaning
    folder = root.expanduser().absolute()
    if not folder.exists():
        raise MissingInputError(f"there is no {root}. {_what_to_do(asked)}")
    found = [(one, path) for one in asked for path in one.find(folder, request)]
    if not found:
        raise MissingInputError(f"no {request.sensor.title} product at or below {root}. {_what_to_do(asked)}")
    return sorted(found, key=lambda pair: (pair[1], pair[0].name))


def _asked(request: Request, name: str) -> list[Reader]:
    if name == "auto":
        return [r for r in READERS.values() if r.automatic and request.sensor.name in r.sensors]
    if name not in READERS:
        raise unknown("reader", name, ["auto", *READERS])
    if request.sensor.name not in READERS[name].sensors:
        sensors = ", ".join(READERS[name].sensors)
        raise ConfigError(
            f"reader `{name}` reads {sensors}, not {request.sensor.name}: change `reader` or `sensor`."
        )
    return [READERS[name]]


def _what_to_do(asked: list[Reader]) -> str:
    layouts = "; ".join(reader.layout for reader in asked)
    return (
        f"Looked for {layouts}. Give the folder of your archive as scenes=/path/to/archive, or make simulated scenes"
        " to try it with: python preprocessing/simulate.py demo/archive"
    )


READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        sentinel2.READER,
        sentinel2_aws.READER,
        landsat.READER,
        oscd.READER,
        oscd.PAIR_READER,
        bigearthnet.READER,
        fmow_sentinel.READER,
        stac.READER,
        geotiff.READER,
    )
}
