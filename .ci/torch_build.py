"""Say which build of torch pip is about to install and how much it downloads: `torch_build.py REPORT.json`.

REPORT.json is what `pip install --dry-run --report` wrote. Standard library only: nothing is installed yet.
"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE_BYTES = 1e9


def size_bytes(url: str) -> int | None:
    """Return the size of the file behind `url`, or None where its server does not tell."""
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path)).stat().st_size
    trust = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def describe(items: list[dict[str, Any]]) -> str:
    """Return one line for the packages of a pip report, and a second where they are large."""
    torch = next(item for item in items if item["metadata"]["name"] == "torch")
    file = unquote(torch["download_info"]["url"].rsplit("/", 1)[-1])
    cuda = any(item["metadata"]["name"].startswith(("nvidia-", "cuda-")) for item in items)
    build = (
        "the CUDA build"
        if cuda or "+cu" in file
        else "the CPU build"
        if "+cpu" in file
        else "the standard build"
    )
    sizes = [size_bytes(item["download_info"]["url"]) for item in items]
    known = sum(size for size in sizes if size)
    size = f"{known / 1e9:.1f} GB" if known >= LARGE_BYTES else f"{known / 1e6:.0f} MB"
    count = f"torch and {len(items) - 1} packages it needs" if len(items) > 1 else "one file"
    line = f"setup: torch comes as {build}: {file}, {'at least ' if None in sizes else ''}{size} to download ({count})"
    if known < LARGE_BYTES:
        return line
    return line + (
        "\nsetup: no GPU here? Stop with Ctrl-C, set TORCH_INDEX_URL to the PyTorch project's index of CPU builds"
        "\nsetup: and run make setup again: that one downloads about 0.2 GB."
    )


if __name__ == "__main__":
    print(describe(json.loads(Path(sys.argv[1]).read_text())["install"]), flush=True)
