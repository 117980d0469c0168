"""The STAC Item of a simulated Landsat product: where its files are published, and what their bytes sum to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

PUBLISHED = "https://landsatlook.usgs.gov/data/simulated"
SHA2_512 = "1340"
"""What stands before a sum of this kind in a multihash: its code, and 64 bytes."""


def write_item(product: Path, level: str, time: str) -> Path:
    """Write the Item of all other files of a product's folder; returns its path."""
    # Level 2 has an Item of reflectance and one of temperature, which is not simulated
    kind = "SR_stac" if level.startswith("L2") else "stac"
    # sorted, so that equal products have equal bytes
    files = sorted(path for path in product.iterdir() if path.is_file())
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": ["https://stac-extensions.github.io/file/v1.0.0/schema.json"],
        "id": product.name,
        "properties": {"datetime": time, "landsat:correction": level},
        "links": [],
        "assets": {path.name.removeprefix(f"{product.name}_"): _asset(path) for path in files},
    }
    path = product / f"{product.name}_{kind}.json"
    path.write_text(json.dumps(item, indent=1), encoding="utf-8")
    return path


def _asset(path: Path) -> dict[str, Any]:
    stated = SHA2_512 + hashlib.sha512(path.read_bytes()).hexdigest()
    return {"href": f"{PUBLISHED}/{path.parent.name}/{path.name}", "file:checksum": stated}
