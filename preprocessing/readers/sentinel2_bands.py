"""What all layouts of Sentinel-2 products share: the offset rule, and how a scene is put together.

Specification: S2-PDGS-TAS-DI-PSD (ESA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import SceneError
from pipeline.sample import Flag
from preprocessing.readers import sentinel2_masks
from preprocessing.readers.product import Request, choose_gsd, missing_band, scene_id
from preprocessing.readers.sentinel2_masks import QualityFiles
from preprocessing.scenes import BandSource, Checksum, MaskSource, Scene

BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""The specification's `band_id` counts these from 0."""
FIRST_BASELINE_WITH_OFFSET = 4.0
OFFSET_DN = -1_000
"""The offset of every band of every product so far, from that baseline on."""
NATIVE = 0.0
"""Pixel size of a file whose name has none (L1C: one file a band)."""
OFFSET_TAGS = {"L2A": "BOA_ADD_OFFSET", "L1C": "RADIO_ADD_OFFSET"}


@dataclass(frozen=True)
class Metadata:
    """What a product's metadata says about the pixels."""

    level: str
    """L1C or L2A."""
    baseline: str
    acquired: str
    quantification: float
    """DN per unit of reflectance."""
    offsets: Mapping[str, float]
    """Band -> DN to add before dividing by the quantification; empty before baseline 04.00."""
    nodata_dn: int = 0
    saturated_dn: int | None = 65_535
    cloud_share: float | None = None
    generated: str = ""
    """When the product was made."""


@dataclass(frozen=True)
class Contents:
    """A product, opened: its metadata and where its images are."""

    product: Path
    metadata: Metadata
    members: Mapping[str, str]
    """Relative name -> what rasterio opens."""
    images: Mapping[str, Mapping[float, str]]
    """Layer (B02, SCL) -> pixel size in metres -> relative name."""
    folder: str
    """Where images are looked for, for people."""
    labels: str | None = None
    """Class raster beside it, where there is one."""
    checksums: Mapping[str, Checksum] = field(default_factory=dict)
    """Relative name -> what the product says its file's bytes sum to."""


def has_offset(baseline: str) -> bool:
    """Say whether digital numbers of a processing baseline carry an offset."""
    try:
        return float(baseline) >= FIRST_BASELINE_WITH_OFFSET
    except ValueError:  # test data sets carry baselines like `unknown`
        return False


def make_scene(contents: Contents, request: Request, name: str, reader: str) -> Scene:
    """Put a scene together; raises `SceneError` naming a band or mask that is missing, or an offset that is."""
    metadata = contents.metadata
    # before anything else is looked at: a missing band is the commonest fault, and the clearest message
    for band in request.bands:
        if band not in contents.images:
            raise missing_band(contents.product, band, contents.folder, _present(contents.images))
    masks = _masks(contents, request)
    return Scene(
        id=scene_id(name),
        sensor=request.sensor.name,
        level=metadata.level,
        reader=reader,
        location=contents.product,
        acquired=metadata.acquired,
        bands=tuple(_band(contents, band, request) for band in request.bands),
        masks=masks,
        labels=contents.labels,
        licence=request.sensor.licence,
        cloud_share=metadata.cloud_share,
        # what decides between two versions of a scene: both parts sort as texts
        version=f"{metadata.baseline} {metadata.generated}",
        notes=_notes(contents, request, masks),
    )


def _band(contents: Contents, band: str, request: Request) -> BandSource:
    metadata, name = contents.metadata, _file(contents, band, request)
    return BandSource(
        name=band,
        path=contents.members[name],
        scale=1 / metadata.quantification,
        offset=_offset(contents, band, request) / metadata.quantification,
        nodata_dn=metadata.nodata_dn,
        saturated_dn=metadata.saturated_dn,
        checksum=contents.checksums.get(name),
    )


def _file(contents: Contents, band: str, request: Request) -> str:
    """Return the relative name of the file to read for a band."""
    sizes = {size: size for size in contents.images[band]}
    size_m, own_m = choose_gsd(sizes, request.gsd_m), request.sensor[band].gsd_m
    # the same band on a coarser grid would pass for it: a product that lost its fine file is not whole
    if size_m > max(own_m, request.gsd_m or 0):
        raise SceneError(
            f"{contents.product.name}: the finest file of band {band} has {size_m:g} m pixels, the band itself"
            f" {own_m:g} m. Fetch the product again, or set `gsd_m: {size_m:g}`."
        )
    return contents.images[band][size_m]


def _offset(contents: Contents, band: str, request: Request) -> float:
    """Return the DN to add for one band."""
    metadata = contents.metadata
    if request.offset == "not_applied":
        return metadata.offsets.get(band, OFFSET_DN)
    # before 04.00 there is no list and nothing to add; from 04.00 on a missing list is damage
    if request.offset == "applied" or not (metadata.offsets or has_offset(metadata.baseline)):
        return 0.0
    if band not in metadata.offsets:
        raise SceneError(
            f"{contents.product.name}: processing baseline {metadata.baseline} has {OFFSET_TAGS[metadata.level]} for"
            f" every band, and the metadata has none for {band}. Fetch the product again. Where it was applied"
            " already, set `offset: applied`."
        )
    return metadata.offsets[band]


def _present(images: Mapping[str, Mapping[float, str]]) -> list[str]:
    return [
        f"{layer} ({', '.join(f'{size:g} m' for size in sorted(sizes))})" if NATIVE not in sizes else layer
        for layer, sizes in sorted(images.items())
        if layer in BAND_IDS
    ]


def _masks(contents: Contents, request: Request) -> tuple[MaskSource, ...]:
    files = QualityFiles(contents.members, contents.checksums)
    name, wanted = contents.product.name, request.quality_masks
    of_bands = sentinel2_masks.of_bands(files, request.bands, wanted, name)
    # L2A holds MSK_CLASSI too, but SCL also knows shadows
    if contents.metadata.level == "L1C":
        clouds = files.clouds()
        if not clouds and wanted == "required":
            raise SceneError(
                f"{name}: no cloud mask (MSK_CLASSI_B00.jp2 or MSK_CLOUDS_B00.gml). Fetch the product again, or set"
                " `quality_masks: auto`."
            )
        return clouds + of_bands
    if "SCL" not in contents.images:
        raise SceneError(
            f"{name}: no scene classification (SCL) in {contents.product}/{contents.folder}."
            " Fetch the product again."
        )
    return (files.classification(contents.images["SCL"], request.gsd_m), *of_bands)


def _notes(contents: Contents, request: Request, masks: Sequence[MaskSource]) -> tuple[str, ...]:
    metadata = contents.metadata
    values = sorted(set(metadata.offsets.values()))
    stated = ", ".join(f"{value:g}" for value in values) or "none"
    used = {
        "auto": "used",
        "applied": "not used (offset: applied)",
        "not_applied": f"{OFFSET_DN} where there is none (offset: not_applied)",
    }[request.offset]
    notes = [
        f"processing baseline {metadata.baseline}",
        f"{OFFSET_TAGS[metadata.level]} {stated}, {used}",
    ]
    clouds = any(Flag.CLOUD in (*m.classes.values(), *m.layers, *m.polygons.values()) for m in masks)
    if not clouds:
        notes.append("no cloud mask in the product")
    elif metadata.level == "L1C":
        notes.append("clouds from the L1C mask, no shadows")
    return tuple(notes)
