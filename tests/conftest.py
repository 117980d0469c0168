"""What tests of all rooms share: where the real imagery is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real imagery: REAL_DATA, else ../shared/data beside the project.

    Skips where it is absent; fails there with REQUIRE_REAL_DATA=1.
    """
    folder = Path(os.environ.get("REAL_DATA") or ROOT.parent / "shared/data").expanduser()
    if not folder.is_dir():
        reason = f"no real imagery at {folder}: set REAL_DATA to its folder"
        (pytest.fail if os.environ.get("REQUIRE_REAL_DATA") == "1" else pytest.skip)(reason)
    return folder
