"""What a Landsat Collection-2 product says its files sum to: in its STAC Items and, in some archives, an MD5 list.

Items of the years before 2021 state no sums, and nothing is compared then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from pipeline.errors import SceneError
from preprocessing import checksums
from preprocessing.readers.product import read_member
from preprocessing.scenes import Checksum

_ITEM = re.compile(r"L[COTE]0[4-9]_.*_stac\.json", re.IGNORECASE)
_LIST = re.compile(r"L[COTE]0[4-9]_.*MD5\.txt", re.IGNORECASE)
_LISTED = re.compile(
    r"^(?:(?P<sum>[0-9a-f]{32})\s+\*?(?P<name>\S+)|(?P<name2>\S+?):?\s+(?P<sum2>[0-9a-f]{32}))\s*$", re.I
)


def read(product: Path, members: Collection[str]) -> dict[str, Checksum]:
    """Read what the files' bytes sum to, by relative name; raises `SceneError` for an Item that cannot be read."""
    found: dict[str, Checksum] = {}
    for name in sorted(members):
        # the Item last: where a list of another day lies beside, it is the publisher's
        if _LIST.fullmatch(name):
            found = dict(_of_list(read_member(product, name))) | found
        elif _ITEM.fullmatch(name):
            found |= _of_item(read_member(product, name), f"{product.name}/{name}")
    # of what the product has: thumbnails are listed, and seldom fetched
    return {name: stated for name, stated in found.items() if name in members}


def _of_list(data: bytes) -> Iterator[tuple[str, Checksum]]:
    for line in data.decode("utf-8", errors="replace").splitlines():
        # the sum stands before the name or behind it, as different tools write it
        match = _LISTED.match(line.strip())
        if match:
            name, stated = match["name"] or match["name2"], match["sum"] or match["sum2"]
            yield PurePosixPath(name).name, Checksum("MD5", stated.lower())


def _of_item(data: bytes, where: str) -> dict[str, Checksum]:
    try:
        assets = json.loads(data)["assets"].values()
        stated = {str(a["href"]): str(a["file:checksum"]) for a in assets if "file:checksum" in a}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SceneError(
            f"{where}: not a STAC Item ({error!r}). Fetch the product again, or take this file away."
        ) from error
    sums = ((PurePosixPath(href).name, checksums.from_multihash(text)) for href, text in stated.items())
    return {name: known for name, known in sums if known}
