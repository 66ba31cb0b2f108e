import numpy as np
import pytest

from hamjepa_jax.benchmarks import evaluation
from hamjepa_jax.benchmarks.evaluation import Case


@pytest.mark.parametrize("part", ["kNN, both votes", "spectrum", "geometry"])
def test_every_part_runs(part):
    measured = evaluation.measure(Case(part, gallery=300, queries=50, dim=16))
    assert measured["part"] == part
    assert measured["seconds"] > 0
    assert measured["features_gib"] == 350 * 16 * 4 / 2**30
    assert measured["peak_memory_gib"] > measured["features_gib"]


def test_the_classes_can_be_told_apart():
    data = evaluation.features(Case("spectrum", gallery=5000, queries=10, dim=16))
    centers = np.stack([data.train_x[data.train_y == label].mean(axis=0) for label in range(evaluation.NUM_CLASSES)])
    assert centers.std() > 0.8


def test_the_floor_counts_the_products():
    operations = evaluation.PARTS["kNN, both votes"][1]
    assert operations(Case("kNN, both votes", gallery=5, queries=3, dim=7)) == 2 * 5 * 3 * 7
    one, ten = (evaluation.PARTS[name][1] for name in ("linear probe", "linear probe, five rates and their twins"))
    case = Case("linear probe", gallery=5, queries=3, dim=7)
    assert ten(case) == 10 * one(case) == 10 * 50 * 5 * 2 * 2 * 7 * 100
    assert {case.part for case in evaluation.CASES} == evaluation.PARTS.keys()


def test_the_table_has_a_row_for_every_case():
    measured = [
        Case("spectrum", 1000, 10, 16)._asdict()
        | {"seconds": 3.0, "features_gib": 0.1, "peak_memory_gib": 0.25, "floor_seconds": floor}
        for floor in (None, 1.5)
    ]
    lines = evaluation.markdown_table(measured).splitlines()
    assert lines[2] == "| spectrum | 1,000 | 10 | 16 | 3.0 | – | – | 0.10 | 0.25 |"
    assert lines[3] == "| spectrum | 1,000 | 10 | 16 | 3.0 | 1.5 | 2.0 | 0.10 | 0.25 |"
