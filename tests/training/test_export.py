"""Weights leave a run at any time as a folder: encoder, what it expects of images, card, code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import manifest as manifests
from pipeline.errors import ContractError, MissingInputError, OutputError
from tests.training.processes import ROOT, SMALL, run_cases
from tests.training.shard_sets import Kind, make_sample
from training import export as exporting
from training import journal
from training.checkpoint import find, read_state, read_weights
from training.export import export, main
from training.sealed import verify
from training.spectral_backbone import load_backbone

COPERNICUS = "Contains modified Copernicus Sentinel data 2024. https://example.org/terms"


@pytest.mark.parametrize("name", ["stage1", "stage3", "full"])
def test_the_encoder_of_any_stage_and_kind_leaves_with_all_it_needs(
    trained: Path, tmp_path: Path, name: str
) -> None:
    out = export(trained / name, tmp_path / "out")
    expected, found = read_weights(find(trained / name), "encoder."), load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) and v.dtype == torch.float32 for k, v in expected.items())
    config, state = json.loads((out / "config.json").read_text()), read_state(find(trained / name))
    assert (config["format_version"], config["training"]["kind"]) == (1, state.kind)
    assert config["training"]["data_digest"] == state.data.digest
    assert config["architecture"]["patch_px"] == 8
    sensor, record = config["sensors"]["sentinel2"], state.data.of("sentinel2")
    assert [b["name"] for b in sensor["bands"]] == list(record.bands)
    assert sensor["bands"][2]["centre_nm"] == pytest.approx(664.6, abs=1)
    assert (sensor["image_px"], len(sensor["statistics"])) == (48, 6)
    assert sensor["normalisation"]["span"][0] == pytest.approx(
        record.statistics[0].high - record.statistics[0].low
    )
    assert list(verify(out)) == []
    pixels = torch.from_numpy(make_sample(3).pixels)[None]
    assert load_backbone(out)(pixels).shape == (1, 96)


def test_weights_leave_a_run_that_goes_on_and_a_checkpoint_by_name(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "whole", tmp_path / "whole"))
    (run / "COMPLETE").unlink()
    assert main([str(run)]) == 0
    assert main([str(run / "checkpoints/step-00000010"), str(tmp_path / "old")]) == 0
    new, old = load_file(run / "export/model.safetensors"), load_file(tmp_path / "old/model.safetensors")
    assert new.keys() == old.keys()
    assert not all(torch.equal(new[k], old[k]) for k in new)
    with pytest.raises(OutputError, match="--force replaces it"):
        main([str(run)])
    assert main([str(run / "checkpoints/step-00000010"), str(run / "export"), "--force"]) == 0
    assert json.loads((run / "export/config.json").read_text())["training"]["step"] == 10


def test_an_exported_folder_opens_alone(trained: Path, tmp_path: Path) -> None:
    out = export(trained / "mixed", tmp_path / "out")
    code = f"""
import sys, torch
sys.path.insert(0, {str(out)!r})
from spectral_backbone import load_backbone
found = load_backbone({str(out)!r}, sensor="landsat_oli")
print(found.plan.bands, list(found(torch.zeros(1, 6, 48, 48)).shape), [n for n in sys.modules if n.startswith(("training", "pipeline"))])
"""
    told = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "('B2', 'B3', 'B4', 'B5', 'B6', 'B7') [1, 96] []"


def test_the_card_tells_contract_data_metrics_and_notices(
    trained: Path, shards: Path, tmp_path: Path
) -> None:
    out = export(trained / "full", tmp_path / "out")
    text, state = (out / "README.md").read_text(), read_state(find(trained / "full"))
    assert "| B8A |" not in text
    assert "| B04 | red | 664." in text
    made = manifests.read(shards)
    assert f"| made | `{made.digest()}` | 40 | - | 1 | made | 2024-06-01 to 2024-06-01 |" in text
    assert f"`{state.data.digest}`" in text
    assert "- Made up for tests: CC0-1.0." in text
    scored = {k: v for line in journal.read(trained / "full") for k, v in line.metrics.items()}
    assert f"| val_accuracy | {scored['val_accuracy']:.5g} |" in text
    assert "memory_gb" not in text
    # what the card tells people to do works
    program = text.split("```python\n")[1].split("```")[0].replace("FOLDER", str(out))
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_mix_with_an_unlabelled_licence_is_refused_unless_named(
    make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    own = make_shards("own", Kind(name="own", scene="own", licence=""), train=range(12))
    other = make_shards("sen", Kind(name="sen", scene="sen", licence=COPERNICUS), train=range(12, 24))
    words = [f"output={tmp_path}", f"data.shards=[{own}, {other}]", *SMALL, "panel_images=0", "steps=2"]
    words += ["name=run", "tracking.register_as=mix"]
    assert run_cases(tmp_path, [("pretrain", words)]) == [True]
    # the run's end had to leave the registry alone, and said so
    assert not (tmp_path / "run/export").exists()
    # what was recorded counts, wherever the sets are by now
    shutil.rmtree(own)
    shutil.rmtree(other)
    with pytest.raises(ContractError, match=r"no licence is known for scenes of own, so .* --licence NAME"):
        main([str(tmp_path / "run")])
    assert not (tmp_path / "run/export").exists()
    assert main([str(tmp_path / "run"), "--licence", "CC BY 4.0, me"]) == 0
    text = (tmp_path / "run/export/README.md").read_text()
    assert f"- {COPERNICUS}\n- own: CC BY 4.0, me (stated at export; the source states none)." in text
    config = json.loads((tmp_path / "run/export/config.json").read_text())
    assert config["licences"][0] == COPERNICUS


def test_the_data_of_the_weights_that_a_run_began_from_counts_too(
    trained: Path, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_shards("sen", Kind(name="sen", scene="sen", licence=COPERNICUS), train=range(12, 24))
    begun = Path(shutil.copytree(trained / "whole", tmp_path / "begun"))
    words = [
        f"output={tmp_path}",
        f"data.shards={other}",
        *SMALL,
        "panel_images=0",
        "steps=2",
        f"init={begun}",
    ]
    assert run_cases(tmp_path, [("pretrain", [*words, "name=later"])]) == [True]
    text = (export(tmp_path / "later", tmp_path / "out") / "README.md").read_text()
    assert f"- {COPERNICUS}\n- Made up for tests: CC0-1.0." in text
    assert text.index("| sen |") < text.index("| made |")
    shutil.rmtree(begun)
    with pytest.raises(ContractError, match=r"the weights it began from, .*begun, which are no longer there"):
        export(tmp_path / "later", tmp_path / "again")


def test_a_checkpoint_of_before_sources_were_recorded_asks_the_sets(
    trained: Path, shards: Path, tmp_path: Path
) -> None:
    from training.model_card import Licences

    state = read_state(find(trained / "whole"))
    (one,) = state.data.sets
    assert one.provenance is not None
    old = one.model_copy(update={"provenance": None})
    asked = state.model_copy(update={"data": state.data.model_copy(update={"sets": (old,)})})
    assert Licences.of(asked, None).notices == ("Made up for tests: CC0-1.0.",)
    gone = old.model_copy(update={"path": str(tmp_path)})
    lost = state.model_copy(update={"data": state.data.model_copy(update={"sets": (gone,)})})
    with pytest.raises(ContractError, match="no licence is known for scenes of made"):
        Licences.of(lost, None)


def test_what_cannot_leave_is_told(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingInputError, match="no checkpoint in"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="choose another place"):
        export(trained / "whole", tmp_path / "file/out")
    # --force is no licence to remove anything else
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.jpg").write_text("mine")
    with pytest.raises(OutputError, match="is no export and is not replaced"):
        export(trained / "whole", tmp_path / "photos", force=True)
    assert (tmp_path / "photos/one.jpg").exists()
    # an export that gives other features is never written
    monkeypatch.setattr(exporting, "_TOLERANCE", -1.0)
    with pytest.raises(OutputError, match="gives other features than the run's encoder"):
        export(trained / "whole", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "photos"]


def test_help_shows_how_to_load_it() -> None:
    told = subprocess.run(
        [sys.executable, "training/export.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert 'backbone = load_backbone("OUT")' in told
    assert "--licence" in told
