"""Probes on the way: scored every so many steps, without a trace in what is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

from tests.training.processes import SMALL, Case, run_cases
from training import journal
from training.neighbours import TEMPERATURE, Cells, Features, Way, learn, learn_cells

PROBE = "probe={every_steps: 4, batch: 8, neighbours: 5, data: {shards: %s}}"


def words(output: Path, shards: Path, *more: str) -> Case:
    common = [f"output={output}", f"data.shards={shards}", *SMALL, "panel_images=0", "steps=6"]
    return "pretrain", [*common, "save_every_steps=100", *more]


@pytest.fixture(scope="module")
def probed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("probed")
    probe = PROBE % shards
    cases = [
        words(output, shards, "name=plain"),
        words(output, shards, "name=knn", probe),
        words(output, shards, "name=ridge", probe, "probe.way=ridge"),
        words(output, shards, "name=stage3", probe, "engine.zero_stage=3"),
        words(output, shards, "name=small", probe, "probe.data.image_px=24"),
        words(output, shards, "name=task", probe, "probe.task=change"),
    ]
    outcomes = run_cases(output, cases)
    assert outcomes[:4] == [True] * 4
    assert "probe.data.image_px=48" in str(outcomes[4])
    assert "not a class a pixel" in str(outcomes[5])
    return output


def scores(output: Path, name: str) -> dict[int, float]:
    lines = journal.read(output / name)
    return {x.step: x.metrics["probe_accuracy"] for x in lines if "probe_accuracy" in x.metrics}


def test_a_probe_is_scored_every_so_many_steps_and_at_the_end(probed: Path) -> None:
    for name in ("knn", "ridge"):
        found = scores(probed, name)
        assert list(found) == [4, 6]
        assert all((value * 12) % 1 == pytest.approx(0, abs=1e-9) for value in found.values())
        assert found[6] > 0.5


def test_a_probe_leaves_no_trace_in_the_training(probed: Path) -> None:
    plain, with_probe = ([x.metrics["loss"] for x in journal.read(probed / n)] for n in ("plain", "knn"))
    assert plain == with_probe


def test_a_probe_reads_weights_that_lie_in_shares(probed: Path) -> None:
    assert scores(probed, "stage3") == pytest.approx(scores(probed, "knn"))


def features(several: bool) -> tuple[Features, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    labels = rng.integers(0, 2, (60, 3)) if several else rng.integers(0, 3, 60)
    return Features(vectors, labels), rng.normal(size=(7, 8)).astype(np.float32)


def standardised(known: Features, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = known.vectors_ND.mean(0), known.vectors_ND.std(0)
    return (known.vectors_ND - mean) / deviation, (queries - mean) / deviation


@pytest.mark.parametrize("several", [False, True])
def test_votes_are_those_of_scikit_learns_neighbours_by_cosine(several: bool) -> None:
    known, queries = features(several)
    bank, asked = standardised(known, queries)
    distances, nearest = NearestNeighbors(n_neighbors=9, metric="cosine").fit(bank).kneighbors(asked)
    weights = np.exp((1 - distances) / TEMPERATURE)
    weights /= weights.sum(1, keepdims=True)
    truth = known.targets(3).numpy()
    expected = (weights[:, :, None] * truth[nearest]).sum(1)
    assert np.allclose(learn("knn", known, 3, 9)(queries).numpy(), expected, atol=1e-5)
    # more neighbours than there are samples: all of them
    assert learn("knn", known, 3, 999)(queries).shape == (7, 3)


@pytest.mark.parametrize("several", [False, True])
def test_the_linear_probe_is_scikit_learns_ridge_on_standardised_features(several: bool) -> None:
    known, queries = features(several)
    bank, asked = standardised(known, queries)
    expected = Ridge(alpha=60**0.5).fit(bank, known.targets(3).numpy()).predict(asked)
    assert np.allclose(learn("ridge", known, 3, 9)(queries).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("way", ["knn", "ridge"])
def test_scale_and_offset_of_a_feature_do_not_matter(way: Way) -> None:
    known, queries = features(several=False)
    # a feature all of whose values are alike tells nothing, and divides nothing by 0
    scale, offset = np.array([1, 9, 1, 1, 0, 1, 1, 0.1], np.float32), np.float32(5)
    other = Features(known.vectors_ND * scale + offset, known.labels)
    without = Features(known.vectors_ND[:, scale > 0], known.labels)
    asked = queries * scale + offset
    said = learn(way, without, 3, 9)(queries[:, scale > 0])
    assert torch.allclose(learn(way, other, 3, 9)(asked), said, atol=1e-3)


def test_cells_hold_the_shares_of_their_labelled_pixels_by_weight() -> None:
    labels = torch.tensor([[[0, 1, -1, -1], [1, 1, -1, -1], [0, 0, -1, 1], [0, 0, -1, -1]]])
    found = Cells.of(torch.arange(4.0).view(1, 1, 2, 2), labels, torch.tensor([1.0, 3.0]))
    # the cell without a label is left out; three pixels of weight 3 and one of 1 are ten
    assert found.vectors_ND.ravel().tolist() == [0, 2, 3]
    assert np.allclose(found.shares_NC, [[0.1, 0.9], [1, 0], [0, 1]])
    assert found.weights_N.tolist() == [10 / 4, 1, 3 / 4]


def test_cells_are_regressed_by_weight_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    vectors, shares = rng.normal(size=(60, 5)).astype(np.float32), rng.random((60, 2)).astype(np.float32)
    weights = rng.random(60).astype(np.float32) + 0.1
    mean, deviation = vectors.mean(0), vectors.std(0)
    weighed = weights / weights.mean()
    oracle = Ridge(alpha=60**0.5).fit((vectors - mean) / deviation, shares, sample_weight=weighed)
    asked = rng.normal(size=(2, 5, 3, 3)).astype(np.float32)
    rows = np.moveaxis(asked, 1, -1).reshape(-1, 5)
    expected = oracle.predict((rows - mean) / deviation).reshape(2, 3, 3, 2)
    found = learn_cells(Cells(vectors, shares, weights))(torch.from_numpy(asked))
    assert np.allclose(found.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
