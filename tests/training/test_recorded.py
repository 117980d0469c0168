"""Everything a run is goes to MLflow, under the same names for every kind of run, and can be sent again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import manifest
from pipeline.errors import MissingInputError
from tests.training.processes import finish, start
from training import export, journal
from training import recorded as reading
from training.checkpoint import find
from training.identity import RunIdentity, run_of
from training.mlflow_client import connect
from training.names import METRICS, meaning
from training.spectral_backbone import load_backbone
from training.sync import main as sync

OF_EVERY_STEP = {"loss", "grad_norm", "lr", "samples_per_s", "tokens_per_s", "flops_per_s", "peak_share",
                 "data_wait_share", "memory_gb"}  # fmt: skip


def recorded(output: Path, name: str) -> tuple[Any, Any]:
    """Return the client and the run of a name."""
    client = connect(f"sqlite:///{output}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = [r for r in client.search_runs(experiments) if r.info.run_name == name]
    return client, run


def files(client: Any, run: Any, folder: str | None = None) -> set[str]:
    found = client.list_artifacts(run.info.run_id, folder)
    return {name for f in found for name in (files(client, run, f.path) if f.is_dir else {f.path})}


def require_all_of(client: Any, run: Any, folder: Path, shards: Path) -> None:
    """Require that MLflow has what a finished pretraining is."""
    made = manifest.read(shards)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", run.data.tags["mlflow.source.git.commit"])
    assert run.data.tags["mlflow.source.name"] == "training/pretrain.py"
    assert run.data.tags["version.torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert {"masking.ratio", "batch.size", "data_digest", "parameters", "ranks"} <= set(run.data.params)
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == (made.name, made.digest())
    data = f"data/{made.name}-{made.digest()[:6]}"
    wanted = {"config.yaml", "packages.txt", "identity.json", "plan.json", "checkpoint/manifest.json"}
    assert wanted | {"panels/reconstruction.png", f"{data}/manifest.json"} <= files(client, run)
    sent = json.loads(
        Path(client.download_artifacts(run.info.run_id, "checkpoint/manifest.json")).read_text()
    )
    name = sent.pop("checkpoint")
    assert name == "checkpoints/step-00000020"
    assert sent == json.loads((folder / name / "MANIFEST.json").read_text())
    assert re.search(r"^torch==", (folder / "packages.txt").read_text(), re.MULTILINE)
    observed = {"mask_ratio", "mask_lambda", "mask_saliency_shown", "mask_top_quartile_shown"}
    assert OF_EVERY_STEP | observed <= set(run.data.metrics)
    assert run.data.metrics["mask_ratio"] == pytest.approx(0.75)


def test_everything_a_run_is_goes_in(trained: Path, shards: Path) -> None:
    client, run = recorded(trained, "whole")
    require_all_of(client, run, trained / "whole", shards)
    assert run.info.end_time > run.info.start_time
    assert abs(run.info.start_time / 1000 - (journal.began_s(trained / "whole") or 0)) < 0.01


def test_metrics_have_one_name_in_every_kind_of_run(trained: Path) -> None:
    folders = [path.parent for path in trained.glob("*/journal.jsonl")]
    names = {f.name: {n for line in journal.read(f) for n in line.metrics} for f in folders}
    assert {n for found in names.values() for n in found if meaning(n) is None} == set()
    for run in ("whole", "stage3", "full", "linear_probe"):
        assert names[run] >= OF_EVERY_STEP
    assert "val_accuracy" in names["full"]


@pytest.mark.parametrize(
    ("name", "of"),
    [("loss", "loss"), ("loss_sentinel2", "loss_{sensor}"), ("loss_spike", "loss_spike"),
     ("probe_macro_f1", "probe_{score}"), ("test_accuracy", "{split}_{score}"), ("peak_share", "peak_share"),
     ("system/gpu_0_power_usage_watts", "system/{what}")],
)  # fmt: skip
def test_a_name_says_what_it_means(name: str, of: str) -> None:
    assert meaning(name) == METRICS[of]
    assert meaning("Nobody's") is None


def test_fine_tunes_stand_below_what_they_come_from(trained: Path) -> None:
    _, origin = recorded(trained, "whole")
    for name in ("full", "linear_probe"):
        _, run = recorded(trained, name)
        assert run.data.tags["mlflow.parentRunId"] == origin.info.run_id
    assert "mlflow.parentRunId" not in origin.data.tags
    assert run_of(find(trained / "whole")) == (trained / "whole").resolve()


@pytest.mark.parametrize("name", ["runs/step-up", "checkpoints/trial", "copied/step-00000500"])
def test_only_a_checkpoint_in_its_place_stands_for_its_run(name: str) -> None:
    assert run_of(Path(name)) == Path(name)
    assert run_of(Path(name) / "checkpoints/step-00000010") == Path(name).resolve()


def test_what_a_version_says_is_of_its_export_and_not_of_newer_weights(trained: Path, tmp_path: Path) -> None:
    older = trained / "whole/checkpoints/step-00000010"
    export.export(older, tmp_path / "encoder", licence="CC0-1.0")
    told = export.described(tmp_path / "encoder")
    assert (told["step"], told["weights_sha256"]) == ("10", manifest.sha256(older / "weights.safetensors"))
    words = [str(older), str(tmp_path / "again"), "--register", "older", "--licence", "CC0-1.0"]
    assert export.main(words) == 0
    client, _ = recorded(trained, "whole")
    (version,) = client.search_model_versions("name = 'older'")
    assert told.items() <= version.tags.items()


def test_runs_are_read_to_the_last_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PAGE", 2)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = connect(uri)
    experiment = client.create_experiment("many")
    for number in range(5):
        client.create_run(experiment, start_time=number + 1, run_name=f"run-{number}")
    found = reading.read_runs(uri, "many", ())
    assert [run.name for run in found] == [f"run-{number}" for number in range(5)]


def test_weights_become_a_version_of_a_model_once(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(trained / "whole"), str(tmp_path / "encoder"), "--force"]
    for _ in range(2):
        assert export.main([*words, "--register", "encoder"]) == 0
        assert "registered as version 1 of encoder" in capsys.readouterr().out
    client, run = recorded(trained, "whole")
    (version,) = client.search_model_versions("name = 'encoder'")
    assert version.run_id == run.info.run_id
    sent = Path(client.download_artifacts(run.info.run_id, "model/step-20"))
    assert version.source.endswith("model/step-20")
    assert version.tags["sha256"] == manifest.sha256(sent / "model.safetensors")
    assert (version.tags["kind"], version.tags["step"], version.tags["sensors"]) == (
        "pretrain",
        "20",
        "sentinel2",
    )
    image = torch.ones(1, 6, 48, 48)
    assert torch.equal(load_backbone(sent)(image), load_backbone(tmp_path / "encoder")(image))
    # the card is what MLflow's page of the version shows
    assert version.description.startswith("# Encoder for images of sentinel2")
    assert "- Made up for tests: CC0-1.0." in version.description
    (tmp_path / "config.yaml").write_text("name: elsewhere\n")
    with pytest.raises(MissingInputError, match=r"Run `python training/sync\.py"):
        export.register(tmp_path, tmp_path / "encoder", "encoder", {})


def test_a_run_tells_people_its_progress_and_is_sent_again_whole(shards: Path, tmp_path: Path) -> None:
    (shards / "quality.html").write_text("<h1>made</h1>")
    told, _ = finish(start(shards, tmp_path, "name=run", "tracking.register_as=trial"))
    line = next(x for x in told.splitlines() if x.startswith("pretrain: 20/20 steps"))
    assert re.search(
        r"\(100 %\), [\d.]+/s, \S+ gone, \S+ left, loss [\d.]+, lr \S+, data wait \d+%, memory [\d.]+ GB$",
        line,
    )
    client, run = recorded(tmp_path, "run")
    require_all_of(client, run, tmp_path / "run", shards)
    assert any(name.endswith("quality.html") for name in files(client, run))
    (version,) = client.search_model_versions("name = 'trial'")
    assert version.run_id == run.info.run_id
    before = {name for name in files(client, run) if not name.startswith("model/")}
    client.delete_run(run.info.run_id)
    assert sync([str(tmp_path / "run")]) == 0
    client, again = recorded(tmp_path, "run")
    require_all_of(client, again, tmp_path / "run", shards)
    assert (again.data.params, again.data.metrics) == (run.data.params, run.data.metrics)
    assert (files(client, again), again.info.status) == (before, "FINISHED")
    kept = {k: v for k, v in run.data.tags.items() if k != "mlflow.log-model.history"}
    assert again.data.tags == kept


def test_a_folder_of_before_identities_tells_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: old\nbatch: {size: 8}\n")
    old = RunIdentity.of(tmp_path)
    assert (old.kind, dict(old.parameters), list(old.files())) == (
        "?", {"name": "old", "batch.size": 8}, [(tmp_path / "config.yaml", "")]
    )  # fmt: skip
