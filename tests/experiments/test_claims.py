import math
from pathlib import Path

import pytest
from scipy import stats

from hamjepa_jax.experiments.claims import DOES_NOT_HOLD, HOLDS, HOLDS_PARTLY, Claim, gains, verdict
from hamjepa_jax.experiments.grids import GRIDS
from hamjepa_jax.experiments.reproductions import REPRODUCTIONS

ROOT = Path(__file__).parents[2]


def records(**features):
    """Row → seed → record, of rows that are given as coordinates → kNN@20 of every seed in %; the probe has half."""

    def scores(top1):
        return {"knn": {"k": [1, 20], "top1": [0.0, top1 / 100]}, "linear_probe": {"top1": top1 / 200}}

    return {
        row: {
            seed: {"features": {name: scores(values[seed]) for name, values in of_row.items()}}
            for seed in range(len(next(iter(of_row.values()))))
        }
        for row, of_row in features.items()
    }


def gain_of(*values, published=None):
    """The gain of a row over one that has nothing."""
    made = records(ours={"q": values}, theirs={"whole": [0.0] * len(values)})
    (gain,) = gains([Claim("ours", "theirs", "kNN@20", published)], made)
    return gain


def test_a_gain_by_hand():
    gain = gain_of(1.0, 2.0, 6.0)
    assert gain.differences == pytest.approx({0: 1.0, 1: 2.0, 2: 6.0})
    assert gain.coordinates == ("q", "whole")
    assert gain.summary.mean == pytest.approx(3.0)
    assert gain.summary.high == pytest.approx(3.0 + 4.302653 * math.sqrt(7 / 3))
    assert gain.t_test == pytest.approx(stats.ttest_1samp([1.0, 2.0, 6.0], 0.0).pvalue)
    assert gain.wilcoxon == 0.25


def test_gains_are_of_the_seeds_that_both_have_and_of_the_score_that_is_claimed():
    made = records(ours={"q": [10.0, 20.0, 40.0]}, theirs={"whole": [4.0, 8.0]}, alone={"q": [1.0]})
    claims = [Claim("ours", "theirs", "linear probe"), Claim("ours", "alone", "kNN@20"), Claim("ours", "no", "kNN@20")]
    (gain,) = gains(claims, made)
    assert gain.differences == pytest.approx({0: 3.0, 1: 6.0})


def test_other_coordinates_are_those_of_rows_that_have_them():
    made = records(ours={"q": [1.0, 2.0], "qp": [3.0, 5.0]}, theirs={"whole": [0.0, 0.0]})
    (gain,) = gains([Claim("ours", "theirs", "kNN@20")], made, "qp")
    assert gain.coordinates == ("qp", "whole")
    assert gain.differences == pytest.approx({0: 3.0, 1: 5.0})
    assert gains([Claim("ours", "theirs", "kNN@20")], made, "p") == []


def test_tests_are_corrected_by_the_number_of_claims():
    made = records(ours={"q": [1.0, 2.0, 6.0]}, theirs={"whole": [0.0] * 3})
    alone = gains([Claim("ours", "theirs", "kNN@20")], made)[0]
    both = gains([Claim("ours", "theirs", "kNN@20"), Claim("ours", "theirs", "linear probe")], made)
    # The probe has half of every difference, and so the same p-values.
    assert [gain.t_test for gain in both] == pytest.approx([2 * alone.t_test] * 2)
    assert [gain.wilcoxon for gain in both] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("values", "published", "expected"),
    [
        ((4.0, 5.0, 6.0), 7.0, HOLDS),
        ((4.0, 5.0, 6.0), None, HOLDS),
        # 5 ± 2.48 does not reach it.
        ((4.0, 5.0, 6.0), 7.6, HOLDS_PARTLY),
        ((-1.0, 2.0, 6.0), 2.0, DOES_NOT_HOLD),
        ((-6.0, -5.0, -4.0), None, DOES_NOT_HOLD),
    ],
)
def test_verdicts(values, published, expected):
    assert gain_of(*values, published=published).verdict == expected


def test_a_verdict_on_several_gains():
    holds, partly, not_at_all = gain_of(4.0, 5.0, 6.0), gain_of(4.0, 5.0, 6.0, published=9.0), gain_of(-1.0, 1.0, 2.0)
    assert verdict([holds, holds]) == HOLDS
    assert verdict([not_at_all, not_at_all]) == DOES_NOT_HOLD
    for mixed in ([holds, not_at_all], [holds, partly], [partly, partly], [partly, not_at_all]):
        assert verdict(mixed) == HOLDS_PARTLY


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_every_claim_is_of_rows_that_are_made(name):
    reproduction = REPRODUCTIONS[name]
    labels = {cell.label for cell in GRIDS[reproduction.grid].cells}
    claims = (*reproduction.claims, *reproduction.controls, *reproduction.corrected)
    assert {claim.row for claim in claims} | {claim.reference for claim in claims} <= labels
    assert (ROOT / "configs" / f"{name}.py").is_file()


def test_the_published_gains():
    published = {
        (name, claim.row, claim.score): claim.published
        for name, reproduction in REPRODUCTIONS.items()
        for claim in reproduction.claims
        if claim.published is not None
    }
    assert published == {
        ("cifar100", "hamjepa_epochs=30", "kNN@20"): 4.89,
        ("cifar100", "hamjepa_epochs=30", "linear probe"): 3.52,
        ("cifar100", "hamjepa_epochs=80", "kNN@20"): 6.45,
        ("cifar100", "hamjepa_epochs=80", "linear probe"): 10.64,
        ("imagenet100", "hamjepa", "kNN@20"): 4.82,
        ("imagenet100", "hamjepa", "linear probe"): 7.52,
        ("cifar100_scaled_down", "hamjepa", "kNN@20"): 4.89,
        ("cifar100_scaled_down", "hamjepa", "linear probe"): 3.52,
    }
