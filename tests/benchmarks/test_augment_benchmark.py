import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from hamjepa_jax.benchmarks import augment, timing
from hamjepa_jax.data import views

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = augment.Case("tiny", augment.IMAGENET, (30, 40), 32, 24, False, 24, 24)
MEASURED = {
    "name": "tiny",
    "size": 24,
    "canvas": 32,
    "batch": 24,
    "device_seconds_per_view": 20e-6,
    "best_device_seconds_per_view": 19.5e-6,
    "pillow_seconds_per_view": 50e-6,
    "best_pillow_seconds_per_view": 49e-6,
    "floor_seconds_per_view": 4e-6,
    "ratio_to_pillow": 2.5,
    "ratio_to_floor": 5.0,
    "compile_seconds": 1.25,
}


@pytest.fixture
def quick_rates(monkeypatch):
    """Measures the rates of the machine in no time, and badly."""
    for name, value in {"MATRIX_SIZE": 16, "PRODUCTS": 1, "RATE_BYTES": 2**16, "RATE_REPEATS": 1}.items():
        monkeypatch.setattr(timing, name, value)


@pytest.fixture(scope="module")
def both_paths():
    """Views (B, size, size, 3) of the device and of Pillow, in units of [0, 1] but for the mean."""
    device, pillow, compile_seconds = augment.prepare(TINY, TINY.batch)
    assert compile_seconds > 0
    std = np.asarray(TINY.settings["std"])
    return np.asarray(device())[0] * std, pillow() * std


@pytest.mark.parametrize("case", augment.CASES, ids=lambda case: case.name)
def test_the_settings_are_those_of_the_configs(case):
    file, variant = {32: ("cifar100", "hamjepa")}.get(case.size, ("imagenet100", "hamjepa_multicrop"))
    published = runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"](variant).data
    config = augment.data_config(case)
    assert config.augmentation.to_dict() == published.augmentation.to_dict()
    assert (config.mean, config.std) == (published.mean, published.std)
    assert case.size == (published.local_view_size if case.local else published.view_size)
    assert config.num_global_views + config.num_local_views == 1
    assert case.local == bool(config.num_local_views)


def test_pillow_and_the_device_make_the_same_views(both_paths):
    device, pillow = both_paths
    assert device.shape == pillow.shape == (24, 24, 24, 3)
    differences = np.abs(device - pillow).mean(axis=(1, 2, 3))
    assert differences.max() < 0.02
    # Another view, even of the same photograph, is far away.
    assert np.abs(device - np.roll(pillow, 2, axis=0)).mean(axis=(1, 2, 3)).min() > 0.04


def test_the_views_are_normalised(both_paths):
    mean = np.asarray(TINY.settings["mean"])
    for path in both_paths:
        unit = path + mean
        assert -1e-5 < unit.min() < 0.1
        assert 0.9 < unit.max() < 1 + 1e-5


def test_pillow_does_only_what_changes_a_view():
    look = views.Appearance(
        flip=np.array([True, False]),
        operations=np.array([[3, 0, 2, 1], [3, 0, 2, 1]]),
        factors=np.array([[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.5, 1.0]]),
        grayscale=np.array([False, True]),
        blur_sigma=np.array([0.0, 1e3]),
        solarize=np.array([False, False]),
    )
    box = views.CropBox(*np.array([[1, 2], [3, 4], [5, 6], [7, 8]]))
    plain, changed = augment.for_pillow(views.CroppedView(box, look), kernel_size=3)
    assert plain.box == (1, 3, 5, 7)
    assert plain.appearance.flip is True
    assert plain.appearance.operations == plain.appearance.factors == []
    assert plain.appearance.blur_sigma == 0.0
    assert changed.appearance.operations == [3, 0, 2, 1]
    # Three equal weights.
    assert changed.appearance.blur_sigma == pytest.approx((2 / 3) ** 0.5)


def test_the_floor_counts_products_and_bytes():
    kernel_size = TINY.settings["blur_kernel_size"]
    resample, blur = 2 * 24 * 24 * 3 * 32, 0.5 * 2 * 2 * 24 * 24 * 3 * (24 + kernel_size - 1)
    assert augment.floor_seconds(TINY, 1.0, np.inf) == resample + blur
    # In four blocks of 56 columns, each of which depends on 67 of the canvas, and on 78 of the view for its blur.
    assert augment.floor_seconds(augment.CASES[1], 1.0, np.inf) == 2 * 224 * 224 * 3 * (67 + 0.5 * 2 * 78)
    assert augment.floor_seconds(TINY, np.inf, 1.0) == 32 * 32 * 3 + 11 * 4 * 24 * 24 * 3


def test_the_table_has_a_row_for_every_case():
    header, rule, row = augment.markdown_table([MEASURED]).splitlines()
    assert header.startswith("| views | views/s | device, µs | Pillow, µs | times Pillow |")
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row == "| tiny | 50,000 | 20.0 (19.5) | 50.0 (49.0) | 2.50 | 4.0 | 5.0 | 1.2 |"


def test_the_script_prints_the_table_and_writes_the_json(tmp_path, monkeypatch, capsys, quick_rates):
    cores = []
    monkeypatch.setattr(augment, "CASES", (TINY,))
    monkeypatch.setattr(timing, "use_cores", cores.append)
    monkeypatch.setattr(sys, "argv", ["augment", "--repeats=2", f"--json={tmp_path}/results/augment.json"])
    augment.main()
    written = json.loads((tmp_path / "results" / "augment.json").read_text())
    assert cores == [1]
    assert written["environment"]["cores"] >= 1
    (case,) = written["cases"]
    assert case.keys() == MEASURED.keys()
    assert case["ratio_to_pillow"] == pytest.approx(case["pillow_seconds_per_view"] / case["device_seconds_per_view"])
    assert case["ratio_to_floor"] == pytest.approx(case["device_seconds_per_view"] / case["floor_seconds_per_view"])
    assert case["best_device_seconds_per_view"] <= case["device_seconds_per_view"]
    assert augment.markdown_table([case]) in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["--cores=0", "--cores=100000", "--repeats=0"])
def test_a_count_that_makes_no_sense_is_refused(argument, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["augment", argument])
    with pytest.raises(SystemExit):
        augment.main()
    assert argument.partition("=")[0] in capsys.readouterr().err


def test_the_process_is_kept_to_as_many_cores_as_asked_for(monkeypatch):
    kept = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {7, 2, 5}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: kept.append((process, cores)), raising=False)
    timing.use_cores(2)
    assert kept == [(0, [2, 5])]
