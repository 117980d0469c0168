"""Object storage by fsspec, the only file that imports it: `s3://` and `https://`."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import MissingPackageError

PATTERN = r"^(s3|https?)://[^/]"
"""What is an address and no path."""
_SILENT_S = 30
"""How long a connection may give nothing."""
_PACKAGES = {"s3": "s3fs", "http": "aiohttp", "https": "aiohttp"}


@dataclass(frozen=True)
class Problem:
    """Why something could not be fetched."""

    text: str
    final: bool
    """Whether asking again is of no use."""


Fetch = Callable[[], Problem | None]


def download(address: str, path: Path) -> Problem | None:
    """Write what lies at an address to a file; returns what went wrong, None where nothing did.

    Raises `MissingPackageError` where the package for such addresses is not installed.
    """
    protocol = address.partition("://")[0]
    failures = _failures(protocol)
    try:
        # made anew: one from before a fork or a failure may hold dead connections
        _file_system(protocol).get_file(address, str(path))
    except (FileNotFoundError, PermissionError) as error:
        return Problem(_text(error), final=True)
    except failures as error:
        return Problem(_text(error), final=False)
    return None


def _text(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__


def _file_system(protocol: str) -> Any:
    fsspec = importlib.import_module("fsspec")
    if protocol == "s3":
        waits = {"connect_timeout": 10, "read_timeout": _SILENT_S, "retries": {"max_attempts": 1}}
        return fsspec.filesystem(
            "s3", config_kwargs=waits, skip_instance_cache=True, use_listings_cache=False
        )
    aiohttp = importlib.import_module("aiohttp")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_SILENT_S)
    return fsspec.filesystem(protocol, client_kwargs={"timeout": timeout}, skip_instance_cache=True)


def _failures(protocol: str) -> tuple[type[BaseException], ...]:
    """Return what a fetch may fail with; the libraries below fsspec have kinds of their own."""
    package = _PACKAGES[protocol]
    try:
        importlib.import_module(package)
        own = importlib.import_module("aiohttp").ClientError
        below = importlib.import_module("botocore.exceptions").BotoCoreError if protocol == "s3" else own
    except ImportError as error:
        raise MissingPackageError(
            f"{protocol}:// needs {package}, which is not installed: pip install -c constraints.txt '.[remote]'"
        ) from error
    return OSError, asyncio.TimeoutError, own, below
