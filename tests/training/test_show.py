"""What a pretraining makes of images, looked at: the layers say what training did, the entry takes steps and keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, ContractError, UnknownNameError
from training import journal
from training.looking import look, whole
from training.pretrain import Pretraining
from training.show import batches, main, opened


@pytest.fixture(scope="module")
def work(trained: Path) -> Pretraining:
    return opened(trained / "whole", None)[0]


def test_layers_are_those_of_training(work: Pretraining) -> None:
    ((batch, count),) = batches(work, 20, [], 3)
    layout, choice = work.inputs["sentinel2"].layout, work.choose(batch)
    assert np.array_equal(whole(work, batch).shown_BK, choice.shown_BK)
    found = look(work, work.model, batch, count)
    assert [one.key for one in found] == batch.keys[:3]
    whole_places = 0
    for number, one in enumerate(found):
        layers = {title: layer.values for title, layer in one.layers.items()}
        assert list(layers) == [
            "true colour", "NDVI", "NDWI", "NDBI", "saliency", "share shown", "shown", "reconstructed", "error",
        ]  # fmt: skip
        assert layers["share shown"].mean() == pytest.approx(choice.shown_BK.shape[1] / layout.tokens)
        assert np.array_equal(layers["saliency"].ravel(), batch.saliency_BS[number])
        # a place all of whose cubes are shown comes back as it was, others are predicted
        known = np.kron(layers["share shown"] == 1, np.ones((layout.patch_px, layout.patch_px))) > 0
        assert np.allclose(layers["reconstructed"][known], layers["true colour"][known], atol=1e-5)
        whole_places += int(known.any())
        assert np.nanmax(np.abs(layers["NDVI"])) <= 1
        assert layers["error"].max() > 0
    assert whole_places > 0


def test_spectra_are_reflectance_of_the_marked_pixels(work: Pretraining) -> None:
    ((batch, _),) = batches(work, 20, [], 1)
    (one,) = look(work, work.model, batch, 1, [(3, 40)])
    record = work.inputs["sentinel2"].record
    stored = batch.image_BCHW[0, :, 3, 40].numpy() * record.contract.scale
    bounds = np.array([(s.low, s.high) for s in record.statistics])
    assert one.pixels == ((3, 40),)
    assert one.spectra.original[0] == pytest.approx(np.clip(stored, *bounds.T), abs=1e-5)
    assert list(one.spectra.centre_nm) == sorted(one.spectra.centre_nm)
    marked = look(work, work.model, batch, 1)[0].pixels
    side, patch = work.inputs["sentinel2"].layout.side, work.inputs["sentinel2"].layout.patch_px
    most = [batch.saliency_BS[0].reshape(side, side)[y // patch, x // patch] for y, x in marked]
    assert most == sorted(most, reverse=True)


def test_the_entry_draws_the_last_step_or_samples_by_key(
    trained: Path, work: Pretraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained / "whole"
    assert main([str(run), "--out", str(tmp_path / "last.png"), "--images", "2"]) == 0
    key = work.stream[0].keys[0]
    assert (
        main(
            [
                str(run / "checkpoints/step-00000010"),
                "--sample",
                key,
                "--pixel",
                "1,2",
                "--out",
                str(tmp_path / "key.png"),
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.split() == [str(tmp_path / "last.png"), str(tmp_path / "key.png")]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("last.png", "key.png"))
    ((batch, count),) = batches(work, 10, [key], 4)
    assert (batch.keys, batch.step, count) == ([key], 9, 1)


def test_what_cannot_be_looked_at_is_told(trained: Path) -> None:
    run = str(trained / "whole")
    with pytest.raises(UnknownNameError, match="unknown sample `nowhere`"):
        main([run, "--sample", "nowhere"])
    with pytest.raises(ConfigError, match="--pixel 3,48 lies outside of images of 48 px"):
        main([run, "--pixel", "3,48"])
    with pytest.raises(SystemExit):
        main([run, "--pixel", "3"])
    with pytest.raises(ContractError, match=r"is a classification run: give one of training/pretrain\.py"):
        main([str(trained / "full")])


def test_panels_are_drawn_on_the_way_too(trained: Path) -> None:
    names = {path.name for path in (trained / "whole/panels").glob("*.png")}
    assert names == {"reconstruction.png", "reconstruction-step-00000015.png"}
    observed = journal.read(trained / "whole")[-1].metrics
    assert {"mask_lambda", "mask_saliency_shown", "mask_top_quartile_shown"} <= observed.keys()
