"""A simulated product packed as its archive hands it out: Sentinel-2 as `.SAFE.zip`, Landsat as `.tar`."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

_EPOCH = (2024, 6, 1, 0, 0, 0)


def zip_product(product: Path) -> Path:
    """Replace a product folder by a zip with the folder in it; returns the zip, `<folder>.zip`."""
    path = product.with_name(f"{product.name}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in _files(product):
            # a fixed time: equal products give equal bytes
            info = zipfile.ZipInfo(file.relative_to(product.parent).as_posix(), _EPOCH)
            packed.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED)
    shutil.rmtree(product)
    return path


def tar_product(product: Path) -> Path:
    """Replace a product folder by a tar with its files and no folder; returns the tar, `<folder>.tar`."""
    path = product.with_name(f"{product.name}.tar")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as packed:
        for file in _files(product):
            info = tarfile.TarInfo(file.relative_to(product).as_posix())
            info.size = file.stat().st_size
            with file.open("rb") as stream:
                packed.addfile(info, stream)
    shutil.rmtree(product)
    return path


def _files(product: Path) -> list[Path]:
    return sorted(path for path in product.rglob("*") if path.is_file())
