"""MLflow's own pages in a real browser: our runs are listed, compared and opened there as a person would.

`SCREENSHOTS=docs/images python -m pytest tests/training/test_mlflow_pages.py` writes the pictures of the documentation.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from tests.training.browser import Page, browser, program
from tests.training.processes import SMALL, free_port, run_cases
from training import compare
from training.mlflow_client import VIEW

pytestmark = pytest.mark.slow
LARGEST_BYTES = 150_000
PREFERENCES = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
}


@pytest.fixture(scope="module")
def output(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pretrainings that differ in masking, and a fine-tune of one of them, on a set with a quality report."""
    program()  # nothing is trained where there is no browser
    output = tmp_path_factory.mktemp("pages")
    made = Path(shutil.copytree(shards, output / "set"))
    (made / "quality.json").write_text('{"name": "made"}')
    (made / "quality.html").write_text("<h1>Quality of made</h1>")
    common = [f"output={output}/runs", f"data.shards={made}"]
    cases = [
        ("pretrain", [*common, *SMALL, f"name={name}", f"masking.strategy={name}"])
        for name in ("random", "saliency")
    ]
    tune = [
        "batch.size=8",
        "epochs=1",
        f"init={output}/runs/random",
        "mode=linear_probe",
        "name=random-probe",
    ]
    assert run_cases(output, [*cases, ("finetune", [*common, *tune])]) == [True] * 3
    return output / "runs"


@pytest.fixture(scope="module")
def address(output: Path) -> Iterator[str]:
    """MLflow on the runs, started as `make ui` does."""
    port = free_port()
    # the program itself is the environment's mlflow
    venv = Path(sys.executable).parents[1]
    server = subprocess.Popen(["bash", ".ci/ui.sh", str(output), str(port)], env=os.environ | {"VENV": str(venv)},
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while not _answers(address):
        assert server.poll() is None, "MLflow has ended"
        assert time.monotonic() < end, "MLflow did not start"
        time.sleep(0.2)
    yield address
    server.terminate()
    server.wait(30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def page(output: Path, address: str) -> Iterator[Page]:
    """The browser, on no page yet."""
    with browser(output / "profile") as page:
        page.remember(**PREFERENCES)
        yield page


@pytest.fixture
def shoot(page: Page, tmp_path: Path) -> Iterator[object]:
    """Take a picture of what is shown."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        # the bar over curves is for a mouse, the button for a language model
        style = "'.modebar, [data-testid*=assistant], [class*=fab] {display: none !important}'"
        page.run(
            f"document.head.append(Object.assign(document.createElement('style'), {{textContent: {style}}}))"
        )
        time.sleep(1)  # curves are drawn in steps
        path = page.shoot(folder / f"{name}.png")
        with Image.open(path) as picture:
            picture.convert("RGB").quantize(96).save(path, optimize=True)
        assert 10_000 < path.stat().st_size < LARGEST_BYTES

    return take


def ids(output: Path, *names: str) -> list[str]:
    return [json.loads((output / name / "mlflow.json").read_text())["run_id"] for name in names]


def listed(*values: str) -> str:
    return quote(json.dumps(values, separators=(",", ":")))


def test_the_list_of_runs_has_the_columns_one_compares_by(page: Page, address: str, shoot) -> None:
    page.open(f"{address}/#/experiments/1/runs?viewStateShareKey={VIEW}", 2300, 420)
    text = page.wait_for("saliency", "random", "Comparison", "samples_per_s", "masking.strategy")
    assert "random-probe" not in text
    # fine-tunes stand below the run that they come from
    page.run("document.querySelector('[role=gridcell] [data-component-id*=runnamecellrenderer]').click()")
    text = page.wait_for("random-probe", "val_accuracy", "linear_probe")
    heads = page.run(
        "[...document.querySelectorAll('.ag-header-cell-text, .ag-header-cell')].map(e => e.innerText)"
    )
    assert {"loss", "peak_share", "samples_per_s", "seed", "masking.ratio", "model.size"} <= {
        h.strip() for h in heads
    }
    assert "3 matching runs" in text
    assert "made (" in text  # the data set with its digest
    shoot("mlflow-runs")


def test_the_compare_page_shows_the_parameters_that_differ(
    page: Page, address: str, output: Path, shoot
) -> None:
    runs = listed(*ids(output, "random", "saliency"))
    page.open(f"{address}/#/compare-runs?runs={runs}&experiments={listed('1')}", 1400, 900)
    page.wait_for("Show diff only", "batch.size")
    page.run("document.querySelector('[aria-label=\"Parameters - Show diff only\"]').click()")
    page.wait_until("!document.body.innerText.includes('batch.size')")
    switch = "document.querySelector('[aria-label=\"Parameters - Show diff only\"]')"
    rows = page.run(f"[...{switch}.parentElement.parentElement.querySelectorAll('tr')].map(r => r.innerText)")
    found = {row.split("\t")[0].strip(): row.split()[1:] for row in rows}
    assert found == {"masking.strategy": ["random", "saliency"], "name": ["random", "saliency"]}
    page.run(f"{switch}.scrollIntoView({{block: 'center'}})")
    shoot("mlflow-compare")


def test_curves_lie_over_each_other(page: Page, address: str, output: Path, shoot) -> None:
    runs, one = listed(*ids(output, "random", "saliency")), listed("loss")
    page.open(
        f"{address}/#/metric?runs={runs}&metric=%22loss%22&experiments={listed('1')}&plot_metric_keys={one}&x_axis=step"
    )
    # a line of each run, and one smoothed
    page.wait_until("document.querySelector('.js-plotly-plot')?.data?.length >= 2")
    drawn = page.run("document.querySelector('.js-plotly-plot').data.map(d => [d.name, d.y.length])")
    assert {tuple(one) for one in drawn} == {("random", 20), ("saliency", 20)}
    page.wait_for("random (loss)", "saliency (loss)")
    page.open(f"{address}/#/experiments/1/runs?compareRunsMode=CHART", 1600, 1000)
    page.wait_for("grad_norm", "mask_lambda", "random (loss)", "saliency (loss)")
    shoot("mlflow-curves")


def test_artifacts_open(page: Page, address: str, output: Path, shoot) -> None:
    (run,) = ids(output, "random")
    page.open(f"{address}/#/experiments/1/runs/{run}/artifacts/panels/reconstruction.png", 1400, 700)
    text = page.wait_for("checkpoint", "data", "config.yaml", "identity.json", "packages.txt", "plan.json")
    assert "reconstruction.png" in text
    page.wait_until("[...document.images].some(i => i.src.startsWith('blob:') && i.naturalWidth > 200)"
                    " || [...document.querySelectorAll('[style*=\"blob:\"], canvas')].length")  # fmt: skip
    shoot("mlflow-artifacts")
    page.open(f"{address}/#/experiments/1/runs/{run}/artifacts/config.yaml")
    page.wait_for("strategy: random")
    page.open(f"{address}/#/experiments/1/runs/{run}/artifacts/checkpoint/manifest.json")
    page.wait_for("weights.safetensors", "sha256")
    page.open(f"{address}/#/experiments/1/runs/{run}/system-metrics")
    page.wait_for("system_memory_usage_megabytes")


def test_a_comparison_takes_its_pictures_from_the_server(address: str, output: Path, tmp_path: Path) -> None:
    page = tmp_path / "compared.html"
    words = [
        "--uri",
        address,
        "--where",
        "kind=pretrain",
        "--html",
        str(page),
        "--picture",
        str(tmp_path / "loss.png"),
    ]
    assert compare.main(words) == 0
    panel = base64.b64encode((output / "random/panels/reconstruction.png").read_bytes()).decode()
    assert page.read_text().count(panel) == 1
    assert page.read_text().count("data:image/png;base64,") == 2
