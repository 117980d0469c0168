"""Memory is kept: tensors that are made again cost no new pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.training.processes import ROOT

CODE = """
import resource
import torch
from training import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        [torch.ones(4, 1024, 1024) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = memory.keep()
# the first ones find their places
faults(), faults()
print("FOUND", kept, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted as Linux counts them")
def test_tensors_that_are_made_again_cost_no_new_pages() -> None:
    told = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, found = told.stdout.split("FOUND ")[1].split()
    assert kept == "True"
    # 40 tensors of 16 MiB are 163 840 pages of 4 KiB
    assert int(found) < 20_000
