import numpy as np
import pytest

from hamjepa_jax import environment
from hamjepa_jax.benchmarks import digits


def run(variant, seed, top1):
    scores = {
        "knn": {"k": [1, 20], "top1": [0.0, top1]},
        "linear_probe": {"top1": top1 + 0.01},
        "few_label_probe": {"5": {"top1": top1 - 0.1}},
    }
    names = ("q", "p", "qp") if variant == "hamjepa" else ("whole",)
    metrics = {
        "features": dict.fromkeys(names, scores),
        "baselines": dict.fromkeys(("pixels", "random_encoder"), scores),
    }
    return {"variant": variant, "seed": seed, "metrics": metrics}


RUNS = [
    run("hamjepa", 1, 0.92),
    run("hamjepa", 0, 0.90),
    run("sigreg", 0, 0.85),
    run("sigreg", 1, 0.87),
]


def test_headline_scores_are_in_percent_and_in_the_order_of_the_seeds():
    np.testing.assert_allclose(digits.headline_scores(RUNS, "HamJEPA q"), [[90, 91, 80], [92, 93, 82]])


def test_the_table_shows_mean_and_sample_deviation_and_the_paired_difference():
    table = digits.markdown_table(RUNS).splitlines()
    assert table[0] == "| features | kNN@20 | linear probe | 5-label probe |"
    assert table[2] == "| HamJEPA q | 91.0 ± 1.4 | 92.0 ± 1.4 | 81.0 ± 1.4 |"
    assert table[5] == "| SIGReg whole | 86.0 ± 1.4 | 87.0 ± 1.4 | 76.0 ± 1.4 |"
    assert table[-1] == "| HamJEPA q − SIGReg, per seed | 5.0 ± 0.0 | 5.0 ± 0.0 | 5.0 ± 0.0 |"


def test_a_run_that_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="byol, seed 0: exit status 2"):
        digits.measure("byol", 0, tmp_path / "run")


def test_the_environment_names_machine_and_versions():
    described = environment.describe()
    assert described["cores"] >= 1
    assert described["processor"]
    assert described["packages"]["jax"].startswith("0.")
