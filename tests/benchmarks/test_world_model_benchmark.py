import sys

import pytest
from PIL import Image

from hamjepa_jax.benchmarks import world_model


def run_of(variant, seed, *, angle=0.5, period=0.01, drift=True):
    band = {"median": [0.1 * (seed + 1)] * 101}
    readings = ("angle_from_q", "velocity_from_p", "time_shift", "shifted_angle_from_q", "shifted_velocity_from_p")
    return {
        "variant": variant,
        "seed": seed,
        "training_seconds": 10.0 + seed,
        "prediction": 0.001,
        "world_model": {
            "readings": dict.fromkeys(readings, 0.9) | {"angle_from_q": angle},
            "long_runs": {
                "time": [8.0 * n for n in range(101)],
                "angle_error": band,
                "energy_error": band,
                "learned_energy_drift": band if drift else None,
                "energy_rank_correlation": 0.99 if drift else None,
                "period_error": period,
                "still_swinging": 0.5,
            },
        },
    }


RUNS = [
    run_of("hamjepa", 0, angle=0.4),
    run_of("mlp", 0, drift=False, period=None),
    run_of("hamjepa", 1, angle=0.6),
    run_of("mlp", 1, drift=False, period=0.02),
]


def test_the_table_has_means_deviations_and_how_many_there_are():
    table = world_model.markdown_table(RUNS)
    assert "| | hamjepa | mlp |" in table
    assert "| angle from q, R² | 0.5 ± 0.14 | 0.5 ± 0 |" in table
    assert "| drift of H after 1,000, std | 0.15 ± 0.071 | – |" in table
    assert "| error of the period, % | 1 ± 0 | 2 (1 of 2) |" in table
    assert "| still swinging after 1,000, % | 50 ± 0 | 50 ± 0 |" in table
    assert len(table.splitlines()) == 2 + len(world_model.ROWS)


def test_the_picture_is_drawn(tmp_path):
    world_model.draw("coupled_pendula", RUNS, tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").size == (1560, 624)


def test_a_run_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"^pendulum mlp, seed 3, --mode=train: exit status 1$"):
        world_model.measure("pendulum", "mlp", 3, tmp_path / "run")
