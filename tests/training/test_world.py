"""Who we are among the ranks, from plain environment variables or Slurm's."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from training.world import NAMES, World

FIVE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)


def give(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_no_variables_mean_one_process() -> None:
    assert World.from_env() == World(0, 1, 0)
    assert World.from_env().main


def test_the_five_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, **FIVE)
    assert World.from_env() == World(1, 2, 0)
    assert not World.from_env().main


def test_slurm_variables_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    give(
        monkeypatch,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="1",
        SLURM_PROCID="3",
        SLURM_NTASKS="4",
        SLURM_LOCALID="1",
    )
    assert World.from_env() == World(3, 4, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    give(monkeypatch, **{k: v for k, v in FIVE.items() if k != name})
    with pytest.raises(ConfigError, match=f"not set: {name}"):
        World.from_env()


@pytest.mark.parametrize(("name", "value"), [("RANK", "2"), ("WORLD_SIZE", "two"), ("RANK", "-1")])
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    give(monkeypatch, **FIVE | {name: value})
    with pytest.raises(ConfigError, match=name):
        World.from_env()


def test_alone_every_agreement_is_ones_own() -> None:
    world = World()
    assert world.sum([1.5, 2]) == [1.5, 2.0]
    assert world.gather("x") == ["x"]
    world.require_same("configuration", "anything")
