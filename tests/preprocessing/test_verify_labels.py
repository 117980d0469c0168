"""What verify finds wrong with labels and dates."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline import manifest as manifests
from pipeline.sample import decode
from preprocessing import verify
from preprocessing.packing import read_shard


@pytest.fixture(scope="module")
def one(shard_set):
    made = manifests.read(shard_set)
    key, members = next(iter(read_shard(shard_set / made.shards("train")[0].path)))
    return made, decode(key, members, "here")


def wrong(sample, made, tmp_path):
    return list(verify.sample_problems(sample, tmp_path, verify.Reread(made)))


def stating(made, **changes):
    return made.model_copy(update={"contract": made.contract.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        ("class", 4, None),
        ("class", 5, "class number 5; its set has 5 classes"),
        ("class", (1,), "another kind than `class`"),
        ("classes", (0, 4), None),
        ("classes", (0, 9), "class number 9"),
        ("mask", "good", None),
        ("mask", "bad", "class number 77"),
        ("mask", None, None),
    ],
)
def test_labels_are_those_of_the_contract(one, tmp_path, kind, label, message):
    made, sample = one
    if isinstance(label, str):
        label = np.where(sample.mask, 255, 3 if label == "good" else 77).astype(np.uint8)
    found = wrong(replace(sample, label=label), stating(made, label_kind=kind), tmp_path)
    assert found == [] if message is None else message in found[0]


def test_a_pair_without_its_second_date_is_told(one, tmp_path):
    made, sample = one
    pairs = stating(made, dates=2)
    assert "does not have the 2 dates" in wrong(sample, pairs, tmp_path)[0]
    assert wrong(replace(sample, after=sample.pixels), pairs, tmp_path) == []
