import numpy as np
import pytest

from hamjepa_jax.benchmarks import checkpoint as benchmark


def test_the_cost_of_a_save_is_what_the_steps_after_it_take_longer():
    # A step takes a second, one with a save at its beginning three, and the next one and a half. What is saved is
    # recorded a step earlier than others.
    seconds = np.ones(23)
    seconds[3::4] += 2.0
    seconds[4::4] += 0.5
    seconds[3::4] += 1.0
    seconds[6::4] -= 1.0
    found = benchmark.saving_costs(seconds, [0.3, 0.1, 0.2], period=4)
    assert found == {
        "seconds_per_step": 1.0,
        "blocked_seconds": 0.2,
        "seconds_per_save": 2.5,
        "period": 4,
        "share_of_period": 0.625,
    }


@pytest.mark.slow
def test_saving_and_restoring_are_measured(tmp_path):
    config = benchmark.make_config(tmp_path / "images", mode="tokens", batch_size=16)
    config.data.view_size = 16
    config.model.widths, config.model.depths, config.model.token_layer = (8, 8), (1, 1), 2
    config.predictor.hidden_dim = 8
    saving = benchmark.measure_saving(config, tmp_path / "saving", period=4, num_saves=2)
    assert saving["seconds_per_step"] > 0
    assert saving["blocked_seconds"] > 0
    restoring = benchmark.measure_restoring(config, tmp_path / "restoring", repeats=2)
    assert 0 < restoring["floor_seconds"] < restoring["restore_seconds"]
    assert restoring["checkpoint_bytes"] > 4 * 3 * restoring["parameters"]
    assert benchmark.saving_table(saving).count("\n") == 2
    assert benchmark.restoring_table({"tiny": restoring}).count("\n") == 2
