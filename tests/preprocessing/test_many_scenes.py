"""P15: a thousand tiny scenes in one run; file handles and memory stay flat."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from pipeline import config as configs
from pipeline import manifest as manifests
from pipeline.sensors import SENSORS

BANDS = ("B02", "B03", "B04", "B08", "B11")
HANDLES = 64
"""Files a run may have open at once: fewer than scenes, more than libraries need."""


def cities(folder: Path, count: int) -> Path:
    """Write pairs of tiny images side by side on the ground, as the change detection set lays them out."""
    rng = np.random.default_rng(0)
    for number in range(count // 2):
        city = folder / "images" / f"c{number:04d}"
        city.mkdir(parents=True)
        (city / "dates.txt").write_text("date_1: 20160424\ndate_2: 20171011\n")
        for date in (1, 2):
            (city / f"imgs_{date}").mkdir()
            for band in BANDS:
                path = city / f"imgs_{date}" / f"T32UPU_20160424T101031_{band}.tif"
                side = 16 if SENSORS["sentinel2"][band].gsd_m == 10 else 8
                shape = {"width": side, "height": side, "count": 1, "dtype": "uint16", "crs": "EPSG:32632"}
                place = Affine(160 / side, 0, 400_000 + 400 * number, 0, -160 / side, 5_500_000)
                with rasterio.open(path, "w", driver="GTiff", transform=place, **shape) as raster:
                    raster.write(rng.integers(300, 4000, (side, side), np.uint16), 1)
    return folder


def peak_mb(scenes: Path, output: Path) -> float:
    """Shard a folder in a process of its own with few file handles; returns its peak memory."""
    words = [
        f"scenes={scenes}",
        f"output={output}",
        f"bands=[{','.join(BANDS)}]",
        "tile_px=16",
        "split.val_share=0",
    ]
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv.pop(1)); from preprocessing import shard\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({HANDLES}, {HANDLES})); shard.main(sys.argv[1:])\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    config = str(configs.ROOT / "configs/shard/oscd.yaml")
    done = subprocess.run(
        [sys.executable, "-c", code, str(configs.ROOT), config, *words],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.split()[-1])


@pytest.mark.timeout(3600)
def test_p15_file_handles_and_memory_stay_flat(tmp_path):
    # the whole thousand takes minutes: `make test-long` runs it
    few, many = (100, 1000) if os.environ.get("LONG_TESTS") == "1" else (10, 40)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > HANDLES
    peaks = []
    for count in (few, many):
        scenes = cities(tmp_path / f"archive-{count}", count)
        peaks.append(peak_mb(scenes, tmp_path / f"set-{count}"))
        made = manifests.read(tmp_path / f"set-{count}")
        assert len(made.scenes) == made.samples("train") == count
    # what remains a scene is its record: some kilobytes
    assert peaks[1] - peaks[0] < 8 + 0.05 * (many - few), peaks
