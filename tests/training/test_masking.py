"""Masks: exact counts, uniform at lambda 0, guided above it, and a pure function of their key."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import ConfigError, UnknownNameError
from training import masking
from training.masking import MASKINGS, Draw, Keys, MaskingConfig

TOKENS, GROUPS, PLACES = 576, 4, 144
IDS = np.arange(200, dtype=np.uint64)


def draw(strength: float = 0.0, images: int = 64, **config: object) -> Draw:
    saliency = np.random.default_rng(1).random((images, PLACES))
    return Draw(Keys(7, IDS[:images], 0), saliency, GROUPS, strength, MaskingConfig.model_validate(config))


def everything_valid(images: int = 64) -> np.ndarray:
    return np.ones((images, PLACES), bool)


@pytest.mark.parametrize("ratio", ["0.1", "0.25", "0.145", "0.5", "0.55", "0.75", "0.9", "0.95"])
def test_counts_are_exact_for_every_number_of_tokens(ratio: str) -> None:
    # in whole numbers: thousandths of a token, half a token up
    thousandths = round(float(ratio) * 1000)
    for tokens in range(1, 1500):
        hidden = (tokens * thousandths + 500) // 1000
        assert masking.counts(tokens, float(ratio)) == (tokens - hidden, hidden)


@pytest.mark.parametrize(("tokens", "shown"), [(576, 58), (1024, 102), (1000, 100), (144, 14), (7, 1)])
def test_counts_at_90_percent(tokens: int, shown: int) -> None:
    assert masking.counts(tokens, 0.9) == (shown, tokens - shown)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("strategy", sorted(MASKINGS))
def test_every_strategy_splits_all_tokens_into_exact_numbers(strategy: str, ratio: float) -> None:
    given = draw(0.3, strategy=strategy, ratio=ratio if strategy != "spectral" else min(ratio, 0.75))
    choice = masking.choose(given, everything_valid())
    assert choice.shown_BK.shape[1] == masking.check(given.config, TOKENS, GROUPS)
    together = np.sort(np.concatenate([choice.shown_BK, choice.hidden_BM], axis=1))
    assert (together == np.arange(TOKENS)).all()
    assert choice.counted_BM.all()


def test_tube_hides_whole_columns_and_spectral_whole_groups() -> None:
    tube = masking.choose(draw(strategy="tube", ratio=0.75), everything_valid()).shown_BK[0]
    assert all(np.isin(tube % PLACES + t * PLACES, tube).all() for t in range(GROUPS))
    spectral = masking.choose(draw(strategy="spectral", ratio=0.5), everything_valid()).shown_BK[0]
    assert np.isin(np.bincount(spectral // PLACES, minlength=GROUPS), (0, PLACES)).all()


def test_a_ratio_that_a_strategy_cannot_reach_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"nearest is 0\.75"):
        masking.check(MaskingConfig(strategy="spectral", ratio=0.9), TOKENS, GROUPS)


def test_an_unknown_strategy_is_corrected() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean `saliency`"):
        masking.check(MaskingConfig(strategy="salency"), TOKENS, GROUPS)


def test_without_guidance_saliency_is_random_masking() -> None:
    guided = masking.choose(draw(0.0, strategy="saliency"), everything_valid())
    plain = masking.choose(draw(0.0, strategy="random"), everything_valid())
    swapped = masking.choose(draw(0.0, strategy="saliency", draw="shown"), everything_valid())
    assert (np.sort(-guided.hidden_BM) == np.sort(-swapped.hidden_BM)).mean() < 1  # another draw, same law
    assert guided.shown_BK.shape == plain.shown_BK.shape
    for choice in (guided, plain, swapped):
        assert_uniform(choice.shown_BK)


def assert_uniform(shown: np.ndarray) -> None:
    """Chi-square over 16 bins of tokens, against its 0.1 % point (37.7 at 15 degrees of freedom)."""
    assert chi_square(shown * 16 // TOKENS, 16) < 37.7


def chi_square(drawn: np.ndarray, kinds: int) -> float:
    counted, expected = np.bincount(drawn.ravel(), minlength=kinds), drawn.size / kinds
    return float(((counted - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("draw_of", ["hidden", "shown"])
@pytest.mark.parametrize("policy", ["mask_salient", "keep_salient"])
def test_at_lambda_0_saliency_decides_nothing(policy: str, draw_of: str) -> None:
    ids = np.arange(4000, dtype=np.uint64)
    saliency = np.tile(np.linspace(0, 1, 8), (len(ids), 1))
    config = MaskingConfig(strategy="saliency", policy=policy, draw=draw_of, ratio=0.75)  # type: ignore[arg-type]
    shown = masking.choose(Draw(Keys(11, ids, 3), saliency, 2, 0.0, config), saliency >= 0).shown_BK
    # 4 of 16 tokens without replacement: each is shown as often as any other, and each pair too
    assert chi_square(shown, 16) < 37.7
    pairs = [(a, b) for a in range(16) for b in range(a)]
    together = [((shown == a).any(1) & (shown == b).any(1)).sum() for a, b in pairs]
    expected = len(ids) * 6 / len(pairs)
    # 0.1 % point of 119 degrees of freedom
    assert sum((n - expected) ** 2 / expected for n in together) < 173.6


@pytest.mark.parametrize(
    ("draw_of", "strength", "share"),
    [
        ("hidden", 0.1, 0.18),
        ("hidden", 0.25, 0.10),
        ("hidden", 0.5, 0.02),
        ("shown", 0.25, 0.18),
        ("shown", 1.0, 0.05),
    ],
)
def test_guidance_moves_the_top_quartile_out_of_the_shown(
    draw_of: str, strength: float, share: float
) -> None:
    observed = masking.choose(draw(strength, strategy="saliency", draw=draw_of), everything_valid()).observed
    assert observed["mask_top_quartile_shown"] == pytest.approx(share, abs=0.02)
    assert observed["mask_lambda"] == strength


def test_keep_salient_shows_what_mask_salient_hides() -> None:
    kept = masking.choose(draw(1.0, strategy="saliency", policy="keep_salient"), everything_valid()).observed
    assert kept["mask_saliency_shown"] > kept["mask_saliency_hidden"] + 0.1


def test_invalid_cubes_are_hidden_first_and_carry_no_loss() -> None:
    valid = everything_valid()
    valid[:, :100] = False
    choice = masking.choose(draw(strategy="random"), valid)
    assert (choice.shown_BK % PLACES >= 100).all()
    assert (choice.counted_BM == (choice.hidden_BM % PLACES >= 100)).all()


def test_a_mask_does_not_depend_on_the_rest_of_the_batch() -> None:
    whole = masking.choose(draw(0.25, strategy="saliency"), everything_valid())
    alone = Draw(
        Keys(7, IDS[5:6], 0), draw().saliency_BS[5:6], GROUPS, 0.25, MaskingConfig(strategy="saliency")
    )
    assert (masking.choose(alone, everything_valid(1)).shown_BK[0] == whole.shown_BK[5]).all()


@pytest.mark.parametrize("other", [(8, 0), (7, 1)])
def test_noise_changes_with_seed_and_epoch(other: tuple[int, int]) -> None:
    here = masking.token_noise(Keys(7, IDS, 0), 64)
    there = masking.token_noise(Keys(other[0], IDS, other[1]), 64)
    assert (here != there).mean() > 0.99
    assert 0 < here.min() < here.max() < 1


@pytest.mark.parametrize("curriculum", ["linear", "cosine", "step"])
def test_the_curriculum_rises_from_zero_after_warmup_to_full_at_80_percent(curriculum: str) -> None:
    config = MaskingConfig(strategy="saliency", curriculum=curriculum, lambda_max=0.25)
    at = [masking.strength(config, step, warmup_steps=10, total_steps=100) for step in range(100)]
    assert at[:11] == [0.0] * 11
    assert at[80:] == [0.25] * 20
    assert at == sorted(at)


def test_masks_are_the_same_for_any_number_of_ranks_and_in_any_order() -> None:
    whole = masking.choose(draw(0.25, strategy="saliency"), everything_valid())
    order = np.random.default_rng(3).permutation(64)
    saliency, config = draw().saliency_BS, MaskingConfig(strategy="saliency")
    for ranks in (2, 4, 8):
        for rank in range(ranks):
            mine = order[rank::ranks]
            part = Draw(Keys(7, IDS[mine], 0), saliency[mine], GROUPS, 0.25, config)
            found = masking.choose(part, everything_valid(len(mine)))
            assert (found.shown_BK == whole.shown_BK[mine]).all()


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_partial_reconstructs_a_share_of_the_hidden_and_mostly_the_salient(share: float) -> None:
    settings = {"strategy": "saliency", "reconstruct": share}
    partly = masking.choose(draw(0.25, policy="partial", **settings), everything_valid())
    whole = masking.choose(draw(0.25, strategy="saliency"), everything_valid())
    assert (partly.hidden_BM == whole.hidden_BM).all()
    assert partly.predicted_BM.shape[1] == masking.counts(whole.hidden_BM.shape[1], share)[1]
    assert all(np.isin(p, h).all() for p, h in zip(partly.predicted_BM, partly.hidden_BM, strict=True))
    assert partly.counted_BM.all()
    observed = partly.observed
    assert observed["mask_saliency_predicted"] > observed["mask_saliency_hidden"] + 0.1
    evenly = masking.choose(draw(0.25, **settings), everything_valid()).observed
    assert evenly["mask_saliency_predicted"] == pytest.approx(evenly["mask_saliency_hidden"], abs=0.02)


def test_what_is_reconstructed_is_drawn_apart_from_what_is_hidden() -> None:
    partly = masking.choose(draw(strategy="random", reconstruct=0.5), everything_valid())
    share = masking.choose(draw(strategy="random", ratio=0.45), everything_valid())
    # were it the same noise, the reconstructed would be those a lower ratio hides
    both = np.mean([np.isin(p, s).mean() for p, s in zip(partly.predicted_BM, share.hidden_BM, strict=True)])
    assert both == pytest.approx(0.5, abs=0.05)


def test_invalid_cubes_are_the_last_to_be_reconstructed() -> None:
    valid = everything_valid()
    valid[:, :100] = False
    choice = masking.choose(draw(strategy="random", reconstruct=0.2), valid)
    assert choice.counted_BM.all()
    short = masking.choose(draw(strategy="random", reconstruct=0.5), valid)
    assert (short.counted_BM.sum(1) == (short.hidden_BM % PLACES >= 100).sum(1)).all()


@pytest.mark.parametrize("strategy", ["random", "saliency", "tube"])
def test_a_share_of_the_valid_leaves_the_others_out(strategy: str) -> None:
    valid = everything_valid(4)
    valid[1, :60], valid[2, 1:], valid[3] = False, False, False
    choice = masking.choose(draw(0.2, 4, strategy=strategy, ratio=0.75, count="valid"), valid)
    shown, hidden = ([row[row >= 0] for row in part] for part in (choice.shown_BK, choice.hidden_BM))
    unit = GROUPS if strategy == "tube" else 1
    for b, places in enumerate((PLACES, PLACES - 60, 1)):
        expected = masking.counts(places * GROUPS // unit, 0.75)[0] * unit
        assert len(shown[b]) == max(expected, unit)
        assert sorted([*shown[b], *hidden[b]]) == np.flatnonzero(np.tile(valid[b], GROUPS)).tolist()
    # nothing is valid: one empty cube keeps attention defined, and nothing carries loss
    assert (len(shown[3]), len(hidden[3])) == (unit, 0)
    assert (choice.counted_BM == (choice.hidden_BM >= 0)).all()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policy": "partial", "strategy": "saliency"}, "reconstruct below 1"),
        ({"policy": "partial", "reconstruct": 0.25}, "strategy: saliency"),
        ({"strategy": "spectral", "count": "valid"}, "whole groups"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        MaskingConfig.model_validate(settings)
