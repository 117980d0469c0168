"""Checkpoints are whole or passed over, and the reader says why."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from pipeline.errors import ConfigError, ContractError, CorruptDataError, MissingInputError, TrainingError
from training.checkpoint import Store, find, read_snapshot, read_state, read_weights
from training.sealed import verify
from training.world import World


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run with checkpoints at steps 10 and 20, which a test may damage."""
    return Path(shutil.copytree(trained / "whole", tmp_path / "whole"))


def newest(run: Path) -> str | None:
    found = Store(run, World()).newest()
    return found.name if found else None


def test_the_last_two_checkpoints_are_kept_whole(run: Path) -> None:
    folders = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    assert folders == ["step-00000010", "step-00000020"]
    assert [list(verify(run / "checkpoints" / name)) for name in folders] == [[], []]
    assert (run / "checkpoints" / "latest").read_text() == newest(run) == "step-00000020"


@pytest.mark.parametrize("damage", ["half", "last 10 bytes", "empty", "flip", "gone"])
@pytest.mark.parametrize("name", ["weights.safetensors", "moments.safetensors", "state.json"])
def test_t06_a_damaged_checkpoint_is_passed_over(
    run: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = run / "checkpoints" / "step-00000020" / name
    data = bytearray(path.read_bytes())
    kept = {"half": len(data) // 2, "last 10 bytes": len(data) - 10, "empty": 0}.get(damage, len(data))
    data[len(data) // 2] ^= damage == "flip"
    path.write_bytes(data[:kept])
    if damage == "gone":
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert newest(run) == "step-00000010"
    assert name in caplog.text


@pytest.mark.parametrize("content", ["", "garbage\0", "step-99999999"])
def test_t05_the_pointer_is_not_believed(run: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    (run / "checkpoints" / "latest").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert newest(run) == "step-00000020"
    assert f"latest names {content!r}: step-00000020 is taken, the newest that verifies" in caplog.text


def test_a_copy_that_somebody_made_is_neither_the_newest_nor_removed(run: Path) -> None:
    copies = [run / "checkpoints" / name for name in ("step-00000020-good", "step-best")]
    for copy in copies:
        shutil.copytree(run / "checkpoints" / "step-00000010", copy)
    assert newest(run) == "step-00000020"
    Store(run, World(), keep_last=1, keep_every=7).prune()
    assert sorted(p.name for p in (run / "checkpoints").glob("step-*")) == [
        "step-00000020",
        *(copy.name for copy in copies),
    ]


def test_t02_a_checkpoint_being_written_is_ignored(run: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step-00000020", run / "checkpoints" / ".step-00000030.partial")
    assert newest(run) == "step-00000020"


def test_t02_what_was_half_written_is_removed_when_the_run_goes_on(run: Path) -> None:
    partial = run / "checkpoints" / ".step-00000013.partial"
    partial.mkdir()
    newest(run)
    assert partial.exists()  # looking at somebody's run changes nothing
    Store(run, World()).newest(mend=True)
    assert not partial.exists()


def test_t06_a_damaged_checkpoint_no_longer_counts_when_the_run_goes_on(run: Path) -> None:
    damaged = run / "checkpoints" / "step-00000020"
    (damaged / "state.json").write_text("")
    found = Store(run, World()).newest(mend=True)
    assert found is not None
    assert sorted(p.name for p in (run / "checkpoints").glob("*step-*")) == [
        "damaged-step-00000020",
        "step-00000010",
    ]


def test_a_damaged_checkpoint_is_not_taken_by_name_either(run: Path) -> None:
    folder = run / "checkpoints" / "step-00000020"
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(data)
    with pytest.raises(CorruptDataError, match=r"weights.safetensors does not have its recorded checksum"):
        find(folder)


def test_t21_half_trained_weights_are_taken_only_by_name(run: Path) -> None:
    (run / "COMPLETE").unlink()
    with pytest.raises(ConfigError, match="is not complete: let it go on to its end, or give"):
        find(run)
    assert find(run / "checkpoints" / "step-00000010").name == "step-00000010"


def test_checkpoints_of_every_so_many_steps_are_kept_for_good(run: Path) -> None:
    whole = run / "checkpoints" / "step-00000020"
    for step in (5, 15, 25, 30, 35):
        shutil.copytree(whole, run / "checkpoints" / f"step-{step:08d}")
    Store(run, World(), keep_last=2, keep_every=10).prune()
    kept = sorted(int(p.name[-8:]) for p in (run / "checkpoints").glob("step-*"))
    assert kept == [10, 20, 30, 35]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_t10_a_good_checkpoint_is_never_replaced_by_one_that_is_not_finite(run: Path, value: float) -> None:
    snapshot, state = read_snapshot(find(run)), read_state(find(run))
    next(iter(snapshot.weights.values())).view(-1)[3] = value

    with pytest.raises(TrainingError, match="is not finite after step 30: nothing is saved"):
        Store(run, World()).write(snapshot, state.model_copy(update={"step": 30}))
    assert newest(run) == "step-00000020"


def test_nothing_whole_is_an_error_not_a_fresh_start(run: Path) -> None:
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(CorruptDataError, match="move the folder away to start anew"):
        newest(run)


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    with pytest.raises(MissingInputError, match="no checkpoint in"):
        find(tmp_path)


def test_a_newer_format_is_refused(run: Path) -> None:
    path = run / "checkpoints" / "step-00000020" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(ContractError, match="format 99"):
        read_state(path.parent)


def test_weights_travel_with_what_they_expect(run: Path) -> None:
    folder = find(run)
    state = read_state(folder)
    record = state.data.of("sentinel2")
    assert (state.kind, state.step, record.image_px) == ("pretrain", 20, 48)
    assert record.bands == ("B02", "B03", "B04", "B08", "B11", "B12")
    assert len(record.statistics) == 6
    weights = read_weights(folder, "encoder.")
    assert weights["positions.spatial.6.weight"].shape == (36, 96)
    assert not any(name.startswith("decoder") for name in weights)


def test_weights_of_the_first_format_are_read_under_todays_names(run: Path) -> None:
    folder = find(run)
    now = read_weights(folder)
    before = {
        name.replace(".6.weight", "").replace(".sentinel2.weight", "").replace(".shared.", "."): value
        for name, value in now.items()
    }
    assert {"encoder.positions.spectral", "decoder.positions.spatial", "encoder.embed.bias"} <= set(before)
    save_file(before, folder / "weights.safetensors")
    path = folder / "state.json"
    tree = json.loads(path.read_text())
    expected = read_state(folder).data.of("sentinel2")
    data = tree["data"]["sensors"]["sentinel2"] | {"digest": tree["data"]["digest"]}
    path.write_text(json.dumps(tree | {"format_version": 1, "data": data}))
    assert read_weights(folder).keys() == now.keys()
    assert read_state(folder).data.of("sentinel2") == expected
