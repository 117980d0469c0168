"""docs/extending.md does what it says: its blocks, word for word, make a sensor, an index, a reader, a masking strategy
and a task that work together, in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from tests.pages import blocks, copy_project, pages

CONTRACT_TESTS = (
    "tests/pipeline/test_sensors.py",
    "tests/pipeline/test_indices.py",
    "tests/training/test_masking.py",
    "tests/training/test_tasks.py",
)
BANDS = ("MS1p", "MS1", "MS2", "MS3", "MS4", "MS4p", "MS5p", "MS5", "MS7")


def apply(block: str, project: Path) -> None:
    """Write a block of the page where its first line says."""
    head, body = block.split("\n", 1)
    place = re.fullmatch(r"# (\S+?)(?:, (in|above|with) (.+))?", head)
    assert place, head
    path = project / place[1]
    if place[2] is None:
        assert not path.exists()
        path.write_text(body)
        return
    text = path.read_text()
    at = {"in": end_of_table, "above": start_of_table, "with": last_import}[place[2]](text, place[3])
    path.write_text(text[:at] + body + ("\n\n" if place[2] == "above" else "") + text[at:])


def start_of_table(text: str, table: str) -> int:
    (found,) = re.finditer(rf"^{table}\b.*= \{{$", text, flags=re.MULTILINE)
    return found.start()


def end_of_table(text: str, table: str) -> int:
    # a table built from a tuple ends with that first
    end = re.compile(r"^(    \)\n)?\}", flags=re.MULTILINE).search(text, start_of_table(text, table))
    assert end
    return end.start()


def last_import(text: str, _: str) -> int:
    return [found.start() for found in re.finditer(r"^from ", text, flags=re.MULTILINE)][-1]


def write_scene(folder: Path, seed: int) -> None:
    """Write a scene as the page's reader knows it: two halves of the ground, one of them green."""
    folder.mkdir(parents=True)
    rng, place = np.random.default_rng(seed), Affine(30, 0, 5e5 + 3e4 * seed, 0, -30, 5.3e6)
    profile = {
        "driver": "GTiff",
        "height": 192,
        "width": 192,
        "count": 1,
        "crs": "EPSG:32633",
        "transform": place,
    }
    classes = np.ones((192, 192), np.uint8)
    classes[:, 96:] = 2
    for band in BANDS:
        level = np.where(classes == 2, 4000 if band.startswith("MS4") else 500, 1500)
        with rasterio.open(folder / f"{band}.tif", "w", dtype="uint16", **profile) as raster:
            raster.write((level + rng.integers(0, 200, level.shape)).astype(np.uint16), 1)
    with rasterio.open(folder / "classes.tif", "w", dtype="uint8", **profile) as raster:
        raster.write(classes, 1)
    (folder / "scene.json").write_text(json.dumps({"scale": 1e-4, "acquired": f"2010-06-0{seed}T10:00:00Z"}))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with every block of the page applied."""
    folder = copy_project(tmp_path_factory.mktemp("extended") / "project")
    for block in blocks(pages()["docs/extending.md"], "python"):
        apply(block, folder)
    for seed in (1, 2, 3):
        write_scene(folder / f"archive/scene-{seed}", seed)
    return folder


def run(project: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=project, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_new_entries_pass_the_contract_tests(project: Path) -> None:
    chosen = "eo1_ali or GNDVI or stripes or agreement or table"
    told = run(project, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", chosen, *CONTRACT_TESTS)
    for name in chosen.split(" or ")[:-1]:
        assert re.search(rf"\[\S*{name}\S*\] PASSED", told), told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_new_entries_work_together(project: Path) -> None:
    words = ["sensor=eo1_ali", "reader=house", f"bands=[{','.join(BANDS)}]", "indices=[NDVI,GNDVI]"]
    words += ["scenes=archive", "output=shards", "tile_px=32", "split.by=scene", "split.val_share=0.4"]
    words += ["labels.classes=[bare,green]", "labels.first_code=1", "labels.min_share=0.5"]
    run(project, "preprocessing/shard.py", "configs/shard/default.yaml", *words)
    made = json.loads((project / "shards/manifest.json").read_text())
    assert made["contract"]["sensor"] == "eo1_ali"
    assert made["contract"]["index_formulas"]["GNDVI"] == "(nir - green) / floored(nir + green)"
    assert {scene["reader"] for scene in made["scenes"]} == {"house"}
    short = [
        "model.size=tiny",
        "data.shards=shards",
        f"data.bands=[{','.join(BANDS)}]",
        "steps=2",
        "batch.size=8",
    ]
    short += ["batch.micro=null", "data.workers=0"]
    told = run(
        project, "training/pretrain.py", "configs/pretrain/demo.yaml", *short, "output=runs", "name=stripes",
        "data.image_px=32", "masking.strategy=stripes", "masking.ratio=0.75",
    )  # fmt: skip
    assert "12 of 48 cubes shown, masking stripes" in told
    run(
        project, "training/finetune.py", "configs/finetune/demo.yaml", *short[:1], "data.shards=shards", "steps=4",
        "output=runs", "init=runs/stripes", "name=tuned", "task=agreement", "batch.size=8",
    )  # fmt: skip
    assert "kappa" in (project / "runs/tuned/journal.jsonl").read_text()
