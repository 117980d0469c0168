"""The MTL of a Landsat Collection-2 product, as text (ODL), XML or JSON: group -> key -> value.

It names keys like REFLECTANCE_MULT_BAND_1 twice, once for each level, so that groups must be kept apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pipeline.errors import SceneError
from preprocessing import checksums, markup
from preprocessing.readers.product import read_member
from preprocessing.scenes import Checksum

Metadata = dict[str, dict[str, str]]
"""Group -> key -> value, all as text."""

NAME = re.compile(r"L[COTE]0([4-9])_.*_MTL\.(txt|json|xml)", re.IGNORECASE)
"""An MTL's file name: the satellite's digit and the form."""
ROOT = "LANDSAT_METADATA_FILE"
_ASSIGNMENT = re.compile(r"^\s*(\w+)\s*=\s*(.*?)\s*$")
AGAIN = "Fetch the product again."


def read(product: Path, members: Collection[str], sums: Mapping[str, Checksum]) -> Metadata:
    """Read the MTL, in the first of its forms that stands in the product.

    sums: what the files are said to sum to. Raises `SceneError` where there is none, or it was altered.
    """
    found = [(match[2].lower(), name) for name in members if (match := NAME.fullmatch(name))]
    # all forms stand in a product and say the same; text is what all collections have
    for form, parse in FORMS.items():
        names = [name for kind, name in found if kind == form]
        if len(names) > 1:
            raise SceneError(f"{product}: holds {', '.join(sorted(names))}. One folder a product.")
        if names:
            data, where = read_member(product, names[0]), f"{product.name}/{names[0]}"
            checksums.check(data, sums.get(names[0]), where)
            return parse(data.decode("utf-8", errors="replace"), where)
    raise SceneError(
        f"{product}: one *_MTL.txt, *_MTL.json or *_MTL.xml is needed, found none. One folder a product."
    )


def parse_text(text: str, where: str) -> Metadata:
    """Parse an MTL.txt (ODL); `where` names the file in errors.

    Raises `SceneError` where it ends before its last group is closed: a truncated file must not pass.
    """
    groups: Metadata = {}
    open_groups: list[str] = []
    for match in filter(None, map(_ASSIGNMENT.match, text.splitlines())):
        key, value = match[1], match[2].strip('"')
        # the same keys occur in several groups, so a flat reading would mix the levels
        if key == "GROUP":
            open_groups.append(value)
            groups.setdefault(value, {})
        elif key == "END_GROUP":
            open_groups = open_groups[:-1]
        elif open_groups:
            groups[open_groups[-1]][key] = value
    if open_groups or not groups:
        raise SceneError(
            f"{where}: not a whole MTL file (group {' > '.join(open_groups) or '-'} is not closed). {AGAIN}"
        )
    return groups


def parse_json(text: str, where: str) -> Metadata:
    """Parse an MTL.json; `where` names the file in the `SceneError` for one that is something else."""
    try:
        tree = json.loads(text)
        return {
            group: {key: str(value) for key, value in pairs.items()} for group, pairs in tree[ROOT].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SceneError(f"{where}: not a Collection-2 MTL ({error!r}). {AGAIN}") from error


def parse_xml(text: str, where: str) -> Metadata:
    """Parse an MTL.xml; `where` names the file in the `SceneError` for one that is something else."""
    # the declaration in the file speaks of bytes
    tree = markup.parse(text.encode(), where)
    if tree.tag != ROOT:
        raise SceneError(f"{where}: not a Collection-2 MTL (its root is {tree.tag}). {AGAIN}")
    return {group.tag: {pair.tag: (pair.text or "").strip() for pair in group} for group in tree}


FORMS: dict[str, Callable[[str, str], Metadata]] = {
    "txt": parse_text,
    "json": parse_json,
    "xml": parse_xml,
}
"""In the order in which they are taken."""
