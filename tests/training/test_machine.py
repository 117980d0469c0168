"""The machine is sampled beside the training, which never waits for it."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from training.machine import Sampler
from training.names import meaning


def first(sampler: Sampler) -> dict[str, float]:
    end = time.monotonic() + 20
    while not (found := sampler.take()):
        assert time.monotonic() < end, "no sample came"
        time.sleep(0.05)
    return found


def test_a_sample_is_given_once_and_is_of_this_machine(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, every_s=60)
    sampler.start()
    found = first(sampler)
    assert sampler.take() == {}
    sampler.close()
    sampler.join(5)
    assert not sampler.is_alive()
    assert all(meaning(name) for name in found)
    total_mb = psutil.virtual_memory().total / 1e6
    assert 0 < found["system/system_memory_usage_megabytes"] < total_mb
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100
    assert found["system/disk_available_megabytes"] == pytest.approx(
        psutil.disk_usage(str(tmp_path)).free / 1e6, rel=0.2
    )


def test_no_sample_is_taken_where_none_is_wanted(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, every_s=0)
    sampler.start()
    sampler.join(5)
    assert not sampler.is_alive()
    assert sampler.take() == {}


def test_a_folder_that_is_gone_costs_a_sample_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    sampler = Sampler(folder, every_s=0.2)
    sampler.start()
    time.sleep(1)
    assert sampler.take() == {}
    folder.mkdir()
    assert first(sampler)
    sampler.close()
