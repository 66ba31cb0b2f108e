"""Means over seeds with intervals, and paired tests with Holm's correction."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Summary(NamedTuple):
    """A score over seeds.

    Attributes:
        mean: its mean.
        std: its standard deviation, with divisor n − 1; not a number for one seed.
        n: number of seeds.
        low: lower end of the 95 % interval of the mean, by Student's t.
        high: its upper end.
    """

    mean: float
    std: float
    n: int
    low: float
    high: float


class Comparison(NamedTuple):
    """Two rows of a table, paired by seed.

    Attributes:
        difference: mean of the differences to the reference.
        n: number of seeds that both have.
        t_test: two-sided p-value of the paired t-test, corrected by Holm over all rows of the table.
        wilcoxon: the same of Wilcoxon's signed-rank test, which cannot fall below 2^(1−n).
    """

    difference: float
    n: int
    t_test: float
    wilcoxon: float


def summarize(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and 95 % interval, mean ± t·std/√n.

    Args:
        values: a score of every seed, at least one.

    Returns:
        The summary.
    """
    from scipy import stats

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Summary(mean, float("nan"), n, float("nan"), float("nan"))
    std = float(np.std(values, ddof=1))
    margin = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * std / n**0.5
    return Summary(mean, std, n, mean - margin, mean + margin)


def compare(rows: Mapping[str, Mapping[int, float]], reference: str) -> dict[str, Comparison]:
    """Every row against the reference, paired by seed.

    Args:
        rows: label → seed → score.
        reference: label of the reference.

    Returns:
        Label → comparison, of those that have two seeds in common with the reference.
    """
    differences = {}
    for label, scores in rows.items():
        common = sorted(scores.keys() & rows.get(reference, {}).keys())
        if label != reference and len(common) > 1:
            differences[label] = np.array([scores[seed] - rows[reference][seed] for seed in common])
    tests = [paired_tests(difference) for difference in differences.values()]
    t_tests, wilcoxons = holm([t for t, _ in tests]), holm([wilcoxon for _, wilcoxon in tests])
    return {
        label: Comparison(float(np.mean(d)), len(d), t_tests[i], wilcoxons[i])
        for i, (label, d) in enumerate(differences.items())
    }


def paired_tests(differences: Sequence[float]) -> tuple[float, float]:
    """Whether the differences of pairs are zero on average.

    Args:
        differences: one of each pair, at least two.

    Returns:
        Two-sided p-values of the t-test and of Wilcoxon's signed-rank test.
    """
    from scipy import stats

    if np.allclose(differences, 0.0, atol=1e-12):
        return 1.0, 1.0
    wilcoxon = float(stats.wilcoxon(np.round(differences, 12)).pvalue)
    # What is higher by the same amount every time has no variance to be compared with.
    if np.allclose(differences, differences[0], rtol=1e-9, atol=1e-12):
        return 0.0, wilcoxon
    return float(stats.ttest_1samp(differences, 0.0).pvalue), wilcoxon


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for many comparisons: the k-th smallest of m is multiplied by m − k + 1, and kept in order.

    Args:
        p_values: of the comparisons.

    Returns:
        Corrected values, in the same order. Rejecting those below α makes any false rejection with probability α at
        most.

    References:
        Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, (len(p_values) - rank) * p_values[i])
        corrected[i] = min(running, 1.0)
    return corrected
