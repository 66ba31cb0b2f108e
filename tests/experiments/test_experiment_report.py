import csv
import json
import math

import matplotlib.axes
import numpy as np
import pytest
from scipy import stats

from hamjepa_jax.experiments.significance import compare, holm, summarize


def test_a_summary_by_hand():
    found = summarize([1.0, 2.0, 6.0])
    assert (found.mean, found.n) == (3.0, 3)
    assert found.std == pytest.approx(math.sqrt(7))
    # Student's t with 2 degrees of freedom: 4.3027.
    assert found.high - found.mean == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_one_seed_has_no_interval():
    found = summarize([5.0])
    assert (found.mean, found.n) == (5.0, 1)
    assert math.isnan(found.std)
    assert math.isnan(found.low)


def test_holm_by_hand():
    # Sorted: 0.01·4, 0.02·3, 0.03·2 raised to the one before, 0.5·1.
    np.testing.assert_allclose(holm([0.5, 0.01, 0.03, 0.02]), [0.5, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_rows_are_paired_by_seed():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=7)
    rows = {
        "reference": dict(enumerate(reference)),
        "same": dict(enumerate(reference)),
        # Much smaller than the spread of the seeds: only pairs can tell.
        "shifted": dict(enumerate(reference + 0.1 + 0.02 * rng.normal(size=7))),
        "other": dict(list(enumerate(rng.normal(size=7)))[::-1]),
        "one seed": {0: 3.0},
    }
    found = compare(rows, "reference")
    assert list(found) == ["same", "shifted", "other"]
    assert found["same"].t_test == found["same"].wilcoxon == 1.0
    differences = np.array([rows["shifted"][i] - reference[i] for i in range(7)])
    assert found["shifted"].difference == pytest.approx(differences.mean())
    assert found["shifted"].t_test == pytest.approx(3 * stats.ttest_1samp(differences, 0).pvalue)
    assert found["shifted"].wilcoxon == pytest.approx(3 * stats.wilcoxon(differences).pvalue) == 3 / 64
    assert found["other"].t_test > 0.05
    assert compare({"reference": {0: 1.0, 1: 2.0}, "by one": {0: 2.0, 1: 3.0}}, "reference")["by one"].t_test == 0.0


@pytest.fixture
def written(stand_in, tmp_path, capsys):
    """The files of a grid of two rows and three seeds, and what was printed."""
    assert stand_in("good", "better") == 0
    out = tmp_path / "out"
    return {file.suffix: file for file in out.iterdir() if file.is_file()}, capsys.readouterr().out


def test_the_table_has_every_row_with_mean_deviation_interval_and_number(written):
    files, said = written
    table = files[".md"].read_text()
    # 80, 81 and 84 % for the seeds 0, 1 and 2.
    low, high = (81.667 + sign * 4.302653 * 2.0817 / math.sqrt(3) for sign in (-1, 1))
    assert f"| good (q) | 3 | 81.7 ± 2.1 [{low:.1f}, {high:.1f}] |" in table
    assert "| raw pixels | 3 | 30.0 ± 0.0 [30.0, 30.0] |" in table
    assert "| | n | kNN@20, % | linear probe, % | 5-label probe, % | effective rank |" in table
    # +10 % with every seed.
    assert "| better | +10.00 (t " in table
    assert "With 3 seeds Wilcoxon's test cannot fall below 0.25 before the correction: it needs 6 seeds" in table
    assert "81.7 ± 2.1" in said
    for file in files.values():
        assert f"written: {file}" in said


def test_every_number_is_kept(written):
    files, _ = written
    results = json.loads(files[".json"].read_text())
    assert results["scores"]["good"]["kNN@20, %"] == pytest.approx({"0": 80.0, "1": 81.0, "2": 84.0})
    assert results["scores"]["untrained encoder"]["effective rank"] == pytest.approx({"0": 4.0, "1": 4.0, "2": 4.0})
    assert results["commands"]["better, seed 2"].endswith("better/seed2")
    assert results["environment"]["packages"].keys() >= {"jax", "numpy", "scipy"}
    assert results["reference"] == "good"
    with files[".csv"].open() as file:
        rows = {(row["row"], row["metric"]): row for row in csv.DictReader(file)}
    assert float(rows["good", "linear probe, %"]["mean"]) == pytest.approx(81.667 / 2, rel=1e-4)
    assert float(rows["better", "kNN@20, %"]["difference"]) == pytest.approx(10.0)
    assert rows["good", "kNN@20, %"]["p_t_test"] == ""


def test_the_picture_has_every_seed(stand_in, tmp_path, monkeypatch):
    drawn = []
    plot = matplotlib.axes.Axes.plot

    def spy(axes, x, y, *style, **settings):
        if settings.get("linestyle") == "none":
            drawn.append((list(x), list(y)))
        return plot(axes, x, y, *style, **settings)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", spy)
    stand_in("good", "better")
    assert len(drawn) == 4 * 2
    np.testing.assert_allclose(drawn[0][0], [80.0, 81.0, 84.0])
    assert drawn[1][1] == [1, 1, 1]
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")
