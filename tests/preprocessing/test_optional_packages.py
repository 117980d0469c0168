"""P18: a package that is not there hinders only what needs it, and that names what to install."""

import os
import subprocess
import sys

import pytest

from pipeline import manifest as manifests
from pipeline.config import ROOT
from preprocessing import shard

BLOCKER = """
import os, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["ABSENT"].split():
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def without(tmp_path):
    """Run Python as on a machine that lacks some packages."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)

    def run(absent: str, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *words],
            env=os.environ | {"ABSENT": absent, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.mark.parametrize("entry", ["shard", "show", "verify", "simulate"])
def test_p18_preprocessing_needs_no_package_of_training(without, entry):
    done = without("torch deepspeed mlflow xformers matplotlib", f"preprocessing/{entry}.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")


def test_p18_what_both_rooms_agree_on_needs_no_heavy_package(without):
    modules = ", ".join(
        f"pipeline.{p.stem}" for p in (ROOT / "pipeline").glob("*.py") if p.stem != "__init__"
    )
    done = without("rasterio zarr dask torch deepspeed mlflow xformers", "-c", f"import {modules}")
    assert (done.returncode, done.stderr) == (0, "")


def test_p18_without_rasterio_preprocessing_says_what_to_install(without):
    done = without("rasterio", "preprocessing/shard.py", "--help")
    assert done.returncode != 0
    assert "preprocessing needs rasterio" in done.stderr.splitlines()[-1]
    assert "make setup" in done.stderr


def test_a_set_of_standard_indices_is_read_and_checked_without_spyndex(without, products, tmp_path):
    words = [
        str(ROOT / "configs/shard/oscd.yaml"),
        f"scenes={products['oscd'].parents[1]}",
        "split.val_share=0",
    ]
    words += [f"output={tmp_path / 'set'}", "tile_px=48", "min_clear=0", "indices=[NDVI,SR,NBRplus]"]
    assert shard.main(words) == 0
    contract = manifests.read(tmp_path / "set").contract
    assert contract.index_formulas["SR"] == "squashed(nir / floored(red))"
    assert contract.index_bands["NBRplus"] == ("B12", "B8A", "B03", "B02")
    for entry, told in (("verify", "everything is as it was written"), ("show", "nir / floored(red)")):
        done = without("spyndex", f"preprocessing/{entry}.py", str(tmp_path / "set"))
        assert done.returncode == 0, done.stderr
        assert told in done.stdout


def test_p18_without_spyndex_the_table_works_and_its_names_tell_what_to_install(without):
    words = ["preprocessing/shard.py", "scenes=nowhere"]
    done = without("spyndex", *words, "indices=[NDVI,EVI]")
    # the configuration is good, only its archive is missing
    assert "there is no nowhere" in done.stderr
    done = without("spyndex", *words, "indices=[NDVI,GNDVI]")
    assert done.returncode == 2
    assert "the table has no index `GNDVI`. Did you mean `NDVI`?" in done.stderr
    assert "pip install -c constraints.txt -e '.[spyndex]'" in done.stderr
