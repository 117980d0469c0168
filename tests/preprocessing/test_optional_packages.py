"""P18: a package that is not there hinders only what needs it, and that names what to install."""

import os
import subprocess
import sys

import pytest

from pipeline.config import ROOT

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


def test_p18_without_spyndex_the_table_works_and_its_names_tell_what_to_install(without):
    words = ["preprocessing/shard.py", "scenes=nowhere"]
    done = without("spyndex", *words, "indices=[NDVI,EVI]")
    # the configuration is good, only its archive is missing
    assert "there is no nowhere" in done.stderr
    done = without("spyndex", *words, "indices=[NDVI,GNDVI]")
    assert done.returncode == 2
    assert "the table has no index `GNDVI`. Did you mean `NDVI`?" in done.stderr
    assert "pip install -c constraints.txt -e '.[spyndex]'" in done.stderr
