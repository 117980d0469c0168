"""Few labels: which samples are drawn, and that the drawn ones are read and ordered as any others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ContractError
from tests.training.shard_sets import Kind
from training.data import DataConfig
from training.fraction import draw
from training.sets import WITH_LABELS, Family, open_families


def family(*shards: Path) -> Family:
    (found,) = open_families(DataConfig(shards=[str(s) for s in shards]), WITH_LABELS)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("fraction", [0.05, 0.3, 1.0])
def test_each_class_gives_its_share_and_at_least_one(shards: Path, fraction: float) -> None:
    few, drawn = draw(family(shards), fraction, seed=3)
    (source,) = few.sources
    counted = Counter(label for label in source.labels())
    assert counted == {c: max(int(n * fraction + 0.5), 1) for c, n in ((0, 14), (1, 13), (2, 13))}
    samples = [source.read(n) for n in range(len(source))]
    assert [s.key for s in samples] == list(drawn.keys) == [source.key(n) for n in range(len(source))]
    assert [s.label for s in samples] == list(source.labels())
    assert sum(source.shards) == len(source) == len(few)


def test_a_smaller_draw_is_part_of_a_larger_one_and_a_seed_makes_another(shards: Path) -> None:
    keys = {(f, s): set(draw(family(shards), f, s)[1].keys) for f in (0.1, 0.5) for s in (0, 1)}
    assert keys[0.1, 0] < keys[0.5, 0]
    assert keys[0.5, 0] != keys[0.5, 1]
    digests = {draw(family(shards), 0.5, s)[1].digest for s in (0, 1, 0)}
    assert len(digests) == 2


def test_a_draw_goes_over_several_sets_at_once(shards: Path, more_shards: Path) -> None:
    _, drawn = draw(family(shards, more_shards), 0.25, seed=0)
    assert len(drawn.keys) == 6 + 5 + 5  # of 22, 21 and 21
    assert {key.split("_")[0] for key in drawn.keys} == {"tile", "more"}


def test_a_set_without_labels_has_nothing_to_draw_from(make_shards: Callable[..., Path]) -> None:
    bare = make_shards("bare", Kind(labelled=()), train=range(6))
    with pytest.raises(ContractError, match="carries a label to draw from"):
        draw(family(bare), 0.5, seed=0)
