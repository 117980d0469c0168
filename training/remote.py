"""Object storage by fsspec, in the only file that imports it: `s3://` and `https://`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import MissingPackageError

PATTERN = r"^(s3|https?)://[^/]"
"""What is an address and no path."""
_SILENT_S = 30
"""How long a connection may give nothing."""


@dataclass(frozen=True)
class Problem:
    """Why something could not be fetched."""

    text: str
    final: bool
    """Whether asking again is of no use."""
    answered: bool = False
    """Whether the storage is there, and what was asked for is not in it as it should be."""


Fetch = Callable[[], Problem | None]


def download(address: str, path: Path) -> Problem | None:
    """Write what lies at an address to a file; returns what went wrong, None where nothing did.

    Raises `MissingPackageError` where the package for such addresses is not installed.
    """
    try:
        files, failures = _s3() if address.startswith("s3:") else _http(address.partition(":")[0])
    except ImportError as error:
        raise MissingPackageError(
            f"{address} needs {error.name}, which is not installed: pip install -c constraints.txt '.[remote]'"
        ) from error
    try:
        files.get_file(address, str(path))
    except FileNotFoundError as error:
        return Problem(_text(error), final=True, answered=True)
    except PermissionError as error:
        return Problem(_text(error), final=True)
    except failures as error:
        return Problem(_text(error), final=False)
    return None


def _text(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__


Opened = tuple[Any, tuple[type[BaseException], ...]]
"""A file system, and what it fails with: the libraries below fsspec have kinds of their own."""


# made anew for each file: one from before a fork or a failure may hold dead connections


def _s3() -> Opened:
    import fsspec
    import s3fs  # noqa: F401 - named in the error where it is missing; fsspec would only say what it cannot do
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError

    waits = {"connect_timeout": 10, "read_timeout": _SILENT_S, "retries": {"max_attempts": 1}}
    files = fsspec.filesystem("s3", config_kwargs=waits, skip_instance_cache=True)
    return files, (OSError, asyncio.TimeoutError, BotoCoreError, ClientError)


def _http(protocol: str) -> Opened:
    import fsspec
    from aiohttp import ClientError, ClientTimeout

    # a whole shard may take long; only silence is a failure
    timeout = ClientTimeout(total=None, sock_connect=10, sock_read=_SILENT_S)
    files = fsspec.filesystem(protocol, client_kwargs={"timeout": timeout}, skip_instance_cache=True)
    return files, (OSError, asyncio.TimeoutError, ClientError)
