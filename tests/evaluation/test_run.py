import jax
import numpy as np
import pytest
from rich.console import Console

from hamjepa_jax import build
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation import run
from hamjepa_jax.stats import spectral


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("evaluation.ks", (0, 5), "must be numbers of neighbours between 1 and 1347, got (0, 5)"),
        ("evaluation.ks", (5, 2000), "between 1 and 1347"),
        ("evaluation.ks", (), "between 1 and 1347"),
        ("evaluation.few_label_probe.labels_per_class", 500, "must be between 1 and the 131 images"),
    ],
)
def test_what_the_data_cannot_give_is_named_before_training(digits_config, key, value, message):
    config = digits_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        run.check(config, build.experiment(config))
    assert str(error.value).startswith(f"config.{key}: ")
    assert message in str(error.value)


def test_an_embedding_is_judged_in_the_coordinates_of_its_geometry_too(digits_config, tmp_path, monkeypatch):
    config = digits_config("hamsigreg_diag")
    experiment = build.experiment(config)
    state = experiment.initial_state(jax.random.key(0))
    monkeypatch.setattr(run, "score", lambda config, features, labels, num_classes: features[1])
    monkeypatch.setattr(run.report, "print_table", lambda *arguments: None)
    monkeypatch.setattr(run, "_write", lambda *arguments: None)
    metrics = run.evaluate(config, experiment, state, state, directory=tmp_path, console=Console(quiet=True))
    assert list(metrics["features"]) == ["whole", "sqrt_h"]
    whole, shaped = metrics["features"].values()
    np.testing.assert_allclose(shaped, spectral.diag(whole.shape[1])(whole), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics["baselines"]["random_encoder"], whole)
