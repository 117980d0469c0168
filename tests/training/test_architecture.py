"""Configurations of the model: those that ship, bands by name, and what cannot be."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError

from pipeline.config import ROOT, load
from pipeline.contract import BandContract
from pipeline.errors import ConfigError
from pipeline.sensors import SENSORS
from training import masking
from training.architecture import SIZES, ModelConfig
from training.downstream import FinetuneConfig
from training.model import SpatialSpectralMAE, count_parameters
from training.pretrain import PretrainConfig
from training.protocol import Cell, StudyConfig
from training.tokens import Layout

CONFIGS = sorted((ROOT / "configs/pretrain").glob("*.yaml"))
STUDIES = {p.name: load(StudyConfig, p) for p in sorted((ROOT / "configs/ablation").glob("*.yaml"))}
ROWS = [
    (name, row)
    for name, study in STUDIES.items()
    for row, what in study.rows.items()
    if what.pretrain is not None
]
S2_12 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


def contracts(sensor: str, names: Sequence[str]) -> list[BandContract]:
    return [
        BandContract(
            name=b.name, role=b.role, centre_nm=b.centre_nm, width_nm=b.width_nm, source_gsd_m=b.gsd_m
        )
        for b in SENSORS[sensor].select(names)
    ]


def layouts(config: PretrainConfig) -> dict[str, Layout]:
    """Lay out the sensors of a configuration on shards of 96 px with all bands it can want."""
    several = config.data.bands if isinstance(config.data.bands, dict) else {}
    found = {}
    for sensor in several or (["landsat_oli"] if config.name == "landsat" else ["sentinel2"]):
        names = config.data.bands_of(sensor) or config.model.bands(sensor) or S2_12
        found[sensor] = config.model.layout(sensor, contracts(sensor, names), config.data.image_px or 96)
    return found


def model_of(config: PretrainConfig) -> SpatialSpectralMAE:
    with torch.device("meta"):
        return SpatialSpectralMAE(config.model, layouts(config))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_can_be_built_and_say_what_comes(path) -> None:  # type: ignore[no-untyped-def]
    config, head = load(PretrainConfig, path, []), path.read_text()
    millions = count_parameters(model_of(config)) / 1e6
    assert [f"{millions:.1f}"] * len(re.findall(r"[\d.]+ M parameters", head)) == re.findall(
        r"([\d.]+) M parameters", head
    )
    for layout in layouts(config).values():
        shown = masking.check(config.masking, layout.tokens, layout.groups)
        counts = re.findall(r"(\d+) of (\d+)(?: and (\d+) of (\d+))? cubes shown", head)
        assert not counts or (str(shown), str(layout.tokens)) in {counts[0][:2], counts[0][2:]}


def pretraining(study: StudyConfig, row: str) -> PretrainConfig:
    step = next(Cell(study, row, 0).steps({}))
    return load(PretrainConfig, ROOT / step.config, step.words)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_every_row_of_the_ablations_is_a_configuration(name: str, row: str) -> None:
    study = STUDIES[name]
    config, reference = pretraining(study, row), pretraining(study, study.reference)
    for layout in layouts(config).values():
        assert masking.check(config.masking, layout.tokens, layout.groups) > 0
    assert count_parameters(model_of(config)) > 0
    alike = config.model_copy(update={"name": reference.name}) == reference
    assert alike == (row == study.reference)


@pytest.mark.parametrize("name", STUDIES)
def test_downstream_runs_of_the_ablations_are_configurations_too(name: str) -> None:
    study = STUDIES[name]
    for cell in study.cells():
        scratch = pretraining(study, study.reference).model.model_dump(mode="json")
        for step in cell.steps(scratch):
            if step.entry == "finetune":
                assert load(FinetuneConfig, ROOT / step.config, step.words).seed == cell.seed


def test_the_tables_of_the_papers_are_all_there() -> None:
    words = {word for cell in STUDIES["s2mae.yaml"].cells() for step in cell.steps({}) for word in step.words}
    assert {f"model.decoder_depth={n}" for n in (2, 8)} <= words
    assert {f"masking.ratio={r}" for r in (0.25, 0.5, 0.75)} <= words
    assert {'model.positions="sincos"', 'model.positions="vanilla"', "model.patch_px=16"} <= words
    assert {f'model.target="{t}"' for t in ("none", "signed", "cube_standardised")} <= words
    words = {
        word for cell in STUDIES["sigmae.yaml"].cells() for step in cell.steps({}) for word in step.words
    }
    assert {'masking.policy="keep_salient"', "masking.lambda_max=0", "masking.richness_weight=0"} <= words


@pytest.mark.parametrize(("image_px", "patch_px", "tokens"), [(96, 8, 576), (128, 8, 1024), (96, 16, 144)])
def test_token_counts_are_the_published_ones(image_px: int, patch_px: int, tokens: int) -> None:
    layout = ModelConfig(patch_px=patch_px).layout("sentinel2", contracts("sentinel2", S2_12), image_px)
    assert (layout.tokens, layout.groups, layout.voxels) == (tokens, 4, 3 * patch_px**2)


@pytest.mark.parametrize(
    ("size", "image_px", "millions"),
    [("tiny", 96, 0.71), ("small", 96, 24.77), ("base", 96, 98.50), ("base", 128, 98.64), ("large", 96, 315.97),
     ("huge", 96, 643.56)],
)  # fmt: skip
def test_sizes_have_the_published_number_of_parameters(size: str, image_px: int, millions: float) -> None:
    with torch.device("meta"):
        model = SpatialSpectralMAE(ModelConfig(size=size), {"sentinel2": Layout.even(12, image_px)})
    assert round(count_parameters(model) / 1e6, 2) == millions
    assert set(SIZES) == {"tiny", "small", "base", "large", "huge"}


def test_groups_take_bands_by_name_wherever_they_are_stored() -> None:
    config = ModelConfig(groups=(("B04", "B08"), ("B8A", "B02", "B03")))
    # as EuroSAT stores them: B8A last
    stored = ("B02", "B03", "B04", "B08", "B8A")
    layout = config.layout("sentinel2", contracts("sentinel2", stored), 96)
    assert layout.members == ((2, 3), (4, 0, 1))
    assert [layout.waves_nm[c][0] for c in layout.members[1]] == [864.7, 492.7, 559.8]
    assert not layout.shared


def test_groups_can_be_given_by_sensor() -> None:
    config = ModelConfig(groups={"landsat_oli": (("B2", "B3"), ("B5",))})
    assert config.bands("landsat_oli") == ("B2", "B3", "B5")
    assert config.bands("sentinel2") is None
    even = config.layout("sentinel2", contracts("sentinel2", S2_12), 96)
    assert (even.groups, even.shared) == (4, True)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"size": "bas"}, "Did you mean `base`"),
        ({"positions": "vanilla", "spectral_position": "wavelength"}, "no groups"),
        ({"decoder": "cross", "spectral_sum_loss": True}, "decoder: self"),
        ({"groups": {"sentinel-2": [["B02"]]}}, "Did you mean `sentinel2`"),
    ],
)
def test_models_that_cannot_be_are_refused(config: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ModelConfig.model_validate(config)


@pytest.mark.parametrize(
    ("config", "bands", "says"),
    [
        ({}, S2_12[:10], r"10 bands.*to one of \[1, 2, 5, 10\].*model\.groups"),
        ({"groups": [["B02", "B03"], ["B03"]]}, ("B02", "B03"), "look at B03"),
        ({"groups": [["B02"], ["B04"]]}, ("B02", "B03"), "look at B03, B04"),
        ({"groups": [["B02", "B03"], []]}, ("B02", "B03"), "the empty group"),
        ({"groups": [["B02", "B03"], ["B04"]], "spectral_sum_loss": True}, ("B02", "B03", "B04"), "must be equal"),
    ],
)  # fmt: skip
def test_bands_that_do_not_fit_are_refused(
    config: dict[str, object], bands: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        ModelConfig.model_validate(config).layout("sentinel2", contracts("sentinel2", bands), 96)


def test_sums_over_groups_need_every_cube_predicted() -> None:
    with pytest.raises(ConfigError, match=r"masking\.reconstruct=1"):
        load(
            PretrainConfig,
            ROOT / "configs/pretrain/cross.yaml",
            ["model.decoder=self", "model.spectral_sum_loss=true"],
        )
