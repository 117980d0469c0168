"""XML from products, without what XML can do to its reader."""

from __future__ import annotations

from xml.etree.ElementTree import Element, ParseError  # types only: defusedxml does the parsing

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from pipeline.errors import SceneError

__all__ = ["Element", "parse", "text"]


def parse(data: bytes, where: str) -> Element:
    """Parse a document; `where` names the file in the `SceneError` for one that is malformed or declares a DTD."""
    # no product needs a DTD, so none is allowed: that closes expansion and external entities at once
    try:
        tree: Element = defusedxml.ElementTree.fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        raise SceneError(f"{where}: refused, it declares a DTD or entities ({error!r}). {_AGAIN}") from error
    except (ParseError, ValueError) as error:
        raise SceneError(f"{where}: not well-formed XML ({error}). {_AGAIN}") from error
    return tree


def text(tree: Element, tag: str) -> str | None:
    """Return the text of the first element of a name, None where it is missing or empty."""
    found = next(tree.iter(tag), None)
    return found.text.strip() if found is not None and found.text else None


_AGAIN = "Fetch the product again."
