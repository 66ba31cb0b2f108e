"""What the paper claims of its table, and whether runs bear it out.

References: Jenkinson Alvarez, arXiv 2605.20107, which gives no seeds and no error bars.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hamjepa_jax.experiments.records import Records
from hamjepa_jax.experiments.significance import Summary, holm, paired_tests, summarize

NEIGHBOURS = 20
HOLDS, HOLDS_PARTLY, DOES_NOT_HOLD = "holds", "holds partly", "does not hold"


def _knn(scores: Mapping[str, Any]) -> float:
    return 100 * scores["knn"]["top1"][scores["knn"]["k"].index(NEIGHBOURS)]


# Accuracy on the test images, %.
SCORES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    f"kNN@{NEIGHBOURS}": _knn,
    "linear probe": lambda scores: 100 * scores["linear_probe"]["top1"],
}


class Claim(NamedTuple):
    """That a row is better than another.

    Attributes:
        row: label of the row.
        reference: label of the row that it is said to be better than.
        score: one of `SCORES`.
        published: by how much, in percentage points; None where nothing but the sign was published, or nothing at all.
    """

    row: str
    reference: str
    score: str
    published: float | None = None


class Gain(NamedTuple):
    """How much better a row is in our runs, paired by seed.

    Attributes:
        claim: the claim.
        coordinates: the features of the row and those of the reference, such as ("q", "whole").
        differences: seed → percentage points.
        summary: their mean, standard deviation and 95 % interval.
        t_test: two-sided p-value of the paired t-test, corrected by Holm over all gains that are judged together.
        wilcoxon: the same of Wilcoxon's signed-rank test, which cannot fall below 2^(1−n).
    """

    claim: Claim
    coordinates: tuple[str, str]
    differences: dict[int, float]
    summary: Summary
    t_test: float
    wilcoxon: float

    @property
    def verdict(self) -> str:
        """Whether the gain is there, and as large.

        `holds` if the interval is above zero and reaches what was published, `holds partly` if it is above zero and
        stays below that, else `does not hold`.
        """
        if not self.summary.low > 0:
            return DOES_NOT_HOLD
        return HOLDS if self.summary.high >= (self.claim.published or 0.0) else HOLDS_PARTLY


def gains(claims: Sequence[Claim], records: Records, coordinates: str | None = None) -> list[Gain]:
    """Our gains of every claim of which two seeds have both rows.

    Args:
        claims: the claims.
        records: the runs.
        coordinates: which features of the rows; None for the headline, q of a state or the whole vector. A row without
            them has no gain, and a reference without them is judged by its headline.

    Returns:
        The gains.
    """
    found = []
    for claim in claims:
        rows = records.get(claim.row, {}), records.get(claim.reference, {})
        common = sorted(rows[0].keys() & rows[1].keys())
        if len(common) < 2 or coordinates and coordinates not in rows[0][common[0]]["features"]:
            continue
        names = tuple(_chosen(row[common[0]]["features"], coordinates) for row in rows)
        differences = {
            seed: SCORES[claim.score](rows[0][seed]["features"][names[0]])
            - SCORES[claim.score](rows[1][seed]["features"][names[1]])
            for seed in common
        }
        values = list(differences.values())
        found.append(Gain(claim, names, differences, summarize(values), *paired_tests(values)))
    corrected = holm([gain.t_test for gain in found]), holm([gain.wilcoxon for gain in found])
    return [gain._replace(t_test=t, wilcoxon=w) for gain, t, w in zip(found, corrected[0], corrected[1], strict=True)]


def _chosen(features: Mapping[str, Any], coordinates: str | None) -> str:
    return coordinates if coordinates in features else next(iter(features))


def verdict(found: Sequence[Gain]) -> str:
    """What is to be said of several gains together.

    Args:
        found: the gains.

    Returns:
        `holds` if every one does, `does not hold` if none does even partly, `holds partly` otherwise.
    """
    verdicts = {gain.verdict for gain in found}
    return verdicts.pop() if len(verdicts) == 1 else HOLDS_PARTLY
