"""T22: weights of another size of image, band set, patch or sensor are refused with the difference, or adapted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ContractError
from tests.training.processes import SMALL, run_cases
from tests.training.test_architecture import S2_12, contracts
from training import journal
from training.architecture import ModelConfig
from training.checkpoint import find, read_state, read_weights
from training.handover import Handover, Origin, Tables, hand_over
from training.model import SpatialSpectralMAE
from training.tokens import Layout

S2_6 = ("B02", "B03", "B04", "B08", "B11", "B12")
OLI_6 = ("B2", "B3", "B4", "B5", "B6", "B7")


def layout(
    bands: tuple[str, ...] = S2_12, px: int = 48, sensor: str = "sentinel2", **config: object
) -> Layout:
    settings = ModelConfig.model_validate({"size": "tiny", **config})
    return settings.layout(sensor, contracts(sensor, bands), px)


def made(seed: int, layouts: dict[str, Layout], **config: object) -> SpatialSpectralMAE:
    torch.manual_seed(seed)
    return SpatialSpectralMAE(ModelConfig.model_validate({"size": "tiny", **config}), layouts)


def handed(
    old: dict[str, Layout], new: dict[str, Layout], tables: Tables = "interpolate", **config: object
) -> tuple[SpatialSpectralMAE, SpatialSpectralMAE, Handover]:
    before, after = made(0, old, **config), made(1, new, **config)
    return before, after, hand_over(Origin(before.state_dict(), old), after, new, tables)


def test_the_same_model_takes_everything_over() -> None:
    before, after, found = handed({"sentinel2": layout()}, {"sentinel2": layout()}, "exact")
    assert found.told() == []
    found.require_exact("here")
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_a_larger_image_interpolates_places_and_nothing_else() -> None:
    before, after, found = handed({"sentinel2": layout(px=48)}, {"sentinel2": layout(px=64)})
    assert [line.split()[0] for line in found.interpolated] == [
        "encoder.positions.spatial.8.weight",
        "decoder.positions.spatial.8.weight",
    ]
    assert "6 x 6 -> 8 x 8 places, bicubic" in found.interpolated[0]
    assert (found.anew, found.left_out) == ([], [])
    assert torch.equal(before.decoder.mask_token, after.decoder.mask_token)


def test_places_keep_their_meaning_when_they_are_interpolated() -> None:
    old, new = ({"sentinel2": layout(px=px)} for px in (96, 128))
    before, after = made(0, old), made(1, new)

    def smooth(side: int) -> torch.Tensor:
        at = (torch.arange(side) + 0.5) / side
        y, x = torch.meshgrid(at, at, indexing="ij")
        return torch.stack([torch.sin(3 * x), y * x, torch.cos(2 * y)] * 32, -1).reshape(side**2, 96)

    before.encoder.positions.spatial["12"].weight.data = smooth(12)
    hand_over(Origin(before.state_dict(), old), after, new, "interpolate")
    error = (after.encoder.positions.spatial["16"].weight - smooth(16)).abs().reshape(16, 16, 96)
    assert error[2:-2, 2:-2].max() < 0.01
    assert error.max() < 0.05


def test_groups_are_interpolated_linearly_by_wavelength() -> None:
    old, new = {"sentinel2": layout()}, {"sentinel2": layout(S2_6)}
    before, after, found = handed(old, new)
    assert "498, 703, 827, 1587 nm -> 572, 1550 nm, linear by wavelength" in found.interpolated[0]
    table = before.encoder.positions.spectral["sentinel2"].weight
    old_nm, new_nm = (
        [np.mean([one.waves_nm[c][0] for c in m]) for m in one.members]
        for one in (old["sentinel2"], new["sentinel2"])
    )
    expected = np.stack([np.interp(new_nm, old_nm, column) for column in table.detach().numpy().T], 1)
    assert np.allclose(after.encoder.positions.spectral["sentinel2"].weight.detach(), expected, atol=1e-6)
    # one projection for all groups serves other bands as well
    assert torch.equal(before.encoder.embed["shared"].weight, after.encoder.embed["shared"].weight)


def test_bands_of_the_same_number_are_not_taken_for_the_same_bands() -> None:
    other = ("B05", "B06", "B07", "B8A", "B11", "B12")
    _, _, found = handed({"sentinel2": layout(S2_6)}, {"sentinel2": layout(other)})
    assert "572, 1550 nm -> 742, 1560 nm" in found.interpolated[0]


def test_a_joint_table_is_interpolated_both_ways() -> None:
    config = {"positions": "vanilla"}
    _, after, found = handed({"sentinel2": layout()}, {"sentinel2": layout(S2_6, 64)}, **config)
    assert after.encoder.positions.joint["sentinel2"].weight.shape == (2 * 64, 96)
    assert "6 x 6 -> 8 x 8 places, bicubic, groups at" in found.interpolated[0]


def test_another_patch_begins_projections_anew_and_says_so() -> None:
    _, _, found = handed({"sentinel2": layout()}, {"sentinel2": layout(px=96, patch_px=16)})
    assert found.interpolated == []
    assert "encoder.embed.shared.weight (96 x 192 in the weights, 96 x 768 here)" in found.anew
    assert "encoder.embed.shared.weight" in found.left_out


def test_a_projection_goes_with_its_bands_and_not_with_its_number() -> None:
    groups = (("B02", "B03", "B04"), ("B08", "B8A"), ("B11", "B12"))
    turned = (groups[2], groups[0], ("B05", "B06"))
    old, new = ({"sentinel2": layout(tuple(sorted(sum(g, ()))), groups=g)} for g in (groups, turned))
    before, after, found = handed(old, new)
    mine, theirs = after.encoder.embed["sentinel2"], before.encoder.embed["sentinel2"]
    assert torch.equal(mine[0].weight, theirs[2].weight)
    assert torch.equal(mine[1].weight, theirs[0].weight)
    # B05 and B06 have as many voxels as B08 and B8A, and are not the same
    assert not torch.equal(mine[2].weight, theirs[1].weight)
    assert (
        "encoder.embed.sentinel2.2.weight (the weights hold nothing of this name and these bands)"
        in found.anew
    )
    assert "encoder.embed.sentinel2.1.weight" in found.left_out


def test_another_sensor_starts_from_the_one_that_is_there() -> None:
    old, new = {"sentinel2": layout()}, {"landsat_oli": layout(OLI_6, sensor="landsat_oli")}
    _, after, found = handed(old, new)
    assert found.anew == []
    assert "encoder.positions.spectral.landsat_oli.weight" in found.interpolated[0]
    assert after.encoder.positions.spectral["landsat_oli"].weight.abs().max() > 0


def test_by_wavelength_a_sensor_never_seen_needs_no_new_weight() -> None:
    new = {"landsat_oli": layout(OLI_6, sensor="landsat_oli")}
    before, after, found = handed({"sentinel2": layout()}, new, "exact", spectral_position="wavelength")
    assert found.told() == []
    assert before.state_dict().keys() == after.state_dict().keys()
    # its bands lie near Sentinel-2's, and so do its positions; far bands' do not
    near, far = (
        replace(layout(S2_6), waves_nm=w) for w in (new["landsat_oli"].waves_nm, ((1200.0, 30.0),) * 6)
    )
    at = {}
    for name, one in (("own", layout(S2_6)), ("near", near), ("far", far)):
        model = made(1, {"x": one}, spectral_position="wavelength")
        at[name] = model.encoder.positions(torch.zeros(1, 1, dtype=torch.long), "x")
    assert (at["own"] - at["near"]).norm() < 0.5 * (at["own"] - at["far"]).norm()


def test_weights_of_several_sensors_serve_one_and_tell_what_is_left() -> None:
    both = {"sentinel2": layout(), "landsat_oli": layout(OLI_6, sensor="landsat_oli")}
    _, _, found = handed(both, {"sentinel2": layout()}, "exact")
    found.require_exact("here")
    assert found.left_out == [
        "decoder.positions.spectral.landsat_oli.weight",
        "encoder.positions.spectral.landsat_oli.weight",
    ]


def test_reinit_begins_changed_tables_anew() -> None:
    before, after, found = handed({"sentinel2": layout()}, {"sentinel2": layout(px=64)}, "reinit")
    assert found.interpolated == []
    assert "reinit, instead of 6 x 6 -> 8 x 8 places" in found.anew[0]
    fresh = made(1, {"sentinel2": layout(px=64)})
    assert torch.equal(
        after.encoder.positions.spatial["8"].weight, fresh.encoder.positions.spatial["8"].weight
    )
    assert torch.equal(after.encoder.norm.weight, before.encoder.norm.weight)


def test_t22_what_does_not_fit_is_refused_with_every_difference_and_nothing_is_loaded() -> None:
    _, after, found = handed({"sentinel2": layout()}, {"sentinel2": layout(S2_6, 64)}, "exact")
    with pytest.raises(ContractError) as told:
        found.require_exact("runs/first")
    for part in (
        "runs/first",
        "6 x 6 -> 8 x 8",
        "498, 703, 827, 1587 nm -> 572, 1550 nm",
        "handover=interpolate",
    ):
        assert part in str(told.value)
    assert torch.equal(after.encoder.norm.bias, made(1, {"sentinel2": layout(S2_6, 64)}).encoder.norm.bias)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            after.parameters(), made(1, {"sentinel2": layout(S2_6, 64)}).parameters(), strict=True
        )
    )


def test_a_pretraining_goes_on_from_weights_of_another_size_when_asked(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    words = [f"output={tmp_path}", f"data.shards={shards}", *SMALL, "panel_images=0", f"init={trained}/whole"]
    smaller = [*words, "data.image_px=32", "steps=2"]
    outcomes = run_cases(
        tmp_path,
        [
            ("pretrain", [*words, "name=same", "steps=2"]),
            ("pretrain", [*smaller, "name=refused"]),
            ("pretrain", [*smaller, "name=smaller", "handover=interpolate"]),
        ],
    )
    assert [outcomes[0], outcomes[2]] == [True, True]
    assert "6 x 6 -> 4 x 4 places" in str(outcomes[1])
    assert "handover=interpolate" in str(outcomes[1])
    scratch = journal.read(trained / "whole")
    for name in ("same", "smaller"):
        first = journal.read(tmp_path / name)[0].metrics["loss"]
        assert first < (scratch[0].metrics["loss"] + scratch[-1].metrics["loss"]) / 2


def test_a_fine_tuning_takes_smaller_images_and_fewer_bands_when_asked(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    words = [
        f"output={tmp_path}",
        f"data.shards={shards}",
        "batch.size=8",
        "steps=1",
        f"init={trained}/whole",
    ]
    other = [*words, "data.image_px=32", "data.bands=[B02,B03,B04]"]
    outcomes = run_cases(
        tmp_path,
        [
            ("finetune", [*other, "name=refused"]),
            ("finetune", [*other, "name=adapted", "handover=interpolate"]),
        ],
    )
    assert "data.image_px: 48 -> 32" in str(outcomes[0])
    assert outcomes[1] is True
    before, after = (read_weights(find(trained / "whole")), read_weights(find(tmp_path / "adapted")))
    state = read_state(find(tmp_path / "adapted"))
    record, known = state.data.of("sentinel2"), read_state(find(trained / "whole")).data.of("sentinel2")
    assert (record.bands, record.image_px) == (("B02", "B03", "B04"), 32)
    # the statistics the weights were trained with, by name
    assert record.statistics == tuple(known.statistics[known.bands.index(b)] for b in record.bands)
    moved = (after["encoder.norm.weight"] - before["encoder.norm.weight"]).abs().max()
    assert moved < 0.01
    assert after["encoder.positions.spatial.4.weight"].shape == (16, 96)
