import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from hamjepa_jax import build
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation import features, run, scores
from hamjepa_jax.stats import spectral

COORDINATES = ("q", "p", "qp", "whole", "pooled", "sqrt_h")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("evaluation.ks", (0, 5), "must be numbers of neighbours between 1 and 1347, got (0, 5)"),
        ("evaluation.ks", (5, 2000), "between 1 and 1347"),
        ("evaluation.ks", (), "between 1 and 1347"),
        ("evaluation.few_label_probe.labels_per_class", (5, 500), "must be between 1 and the 131 images"),
        ("evaluation.few_label_probe.fractions", (0.1, 1.5), "must be numbers above 0 and at most 1, got (0.1, 1.5)"),
        ("evaluation.few_label_probe.fractions", ("a",), "must be numbers above 0 and at most 1, got ('a',)"),
        ("evaluation.probe.learning_rates", (), "must be positive numbers of type float"),
        ("evaluation.temperature", 0.0, "must be positive, got 0.0"),
        ("evaluation.dtype", "float16", "'float16' is unknown; known: bfloat16, float32"),
    ],
)
def test_what_the_data_cannot_give_is_named_before_training(digits_config, key, value, message):
    config = digits_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        run.check(config, build.experiment(config))
    assert str(error.value).startswith(f"config.{key}: ")
    assert message in str(error.value)


@pytest.fixture
def quick(digits_config, monkeypatch):
    """A function that evaluates a fresh encoder in a directory, with little training of probes."""

    def evaluate(directory, variant="hamjepa", step=0, **settings):
        config = digits_config(variant)
        config.update_from_flattened_dict(
            {
                "evaluation.probe.epochs": 1,
                "evaluation.probe.learning_rates": (1e-2,),
                "evaluation.few_label_probe.labels_per_class": (5,),
                "evaluation.few_label_probe.draws": 2,
                "evaluation.few_label_probe.steps": 2,
                "evaluation.few_label_probe.epochs": 1,
            }
            | settings
        )
        experiment = build.experiment(config)
        state, untrained = (experiment.initial_state(jax.random.key(seed)) for seed in range(2))
        state = state._replace(step=state.step + step)
        output = io.StringIO()
        console = Console(file=output, width=100)
        monkeypatch.setattr(
            run, "alignments", lambda *arguments: [dict.fromkeys(COORDINATES, value) for value in (0.25, 0.5)]
        )
        metrics = run.evaluate(config, experiment, state, untrained, directory=directory, console=console)
        return metrics, output.getvalue()

    return evaluate


@pytest.fixture
def features_only(monkeypatch):
    """Instead of scores there are the test features themselves."""
    pictured = []
    monkeypatch.setattr(run, "_score", lambda config, data, *arguments: data.test_x)
    monkeypatch.setattr(run.pictures, "neighbour_sheet", lambda gallery, queries, seed: pictured.append(queries) or {})
    monkeypatch.setattr(run.pictures, "embedding_map", lambda x, labels, seed: {})
    monkeypatch.setattr(run.summary, "print_table", lambda *arguments: None)
    monkeypatch.setattr(run.summary, "draw_summary", lambda metrics, path: path.touch())
    monkeypatch.setattr(run, "write_json", lambda *arguments: None)
    return pictured


def test_an_embedding_is_judged_in_the_coordinates_of_its_geometry_too(quick, tmp_path, features_only):
    metrics, _ = quick(tmp_path, "hamsigreg_diag")
    assert list(metrics["features"]) == ["whole", "pooled", "sqrt_h"]
    whole, pooled, shaped = metrics["features"].values()
    np.testing.assert_allclose(shaped, spectral.diag(whole.shape[1])(whole), rtol=1e-5, atol=1e-6)
    assert pooled.shape == (450, whole.shape[1] // 16)
    untrained = metrics["baselines"]["random_encoder"]
    assert untrained.shape == whole.shape
    assert np.mean(untrained == whole) < 0.01
    np.testing.assert_array_equal(features_only[0].x, whole)
    assert features_only[0].example_ids.tolist() == list(range(450))


class Stopped(Exception):
    """Stands for Ctrl-C."""


def stop_after(function, calls):
    """The function, which raises `Stopped` instead of a later call."""
    left = [calls]

    def stopping(*arguments, **settings):
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return function(*arguments, **settings)

    return stopping


def test_an_interrupted_evaluation_goes_on_where_it_was(quick, tmp_path, monkeypatch):
    settings = {"evaluation.batch_size": 128}
    whole, table = quick(tmp_path / "whole", "sigreg", **settings)
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text()) == whole
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [
        "metrics.json",
        "pictures.npz",
        "summary.png",
    ]

    embedded, scored = [], []
    place = features.sharding.place
    for name, calls in (("first", 5), ("second", 3)):
        # The first stop comes while images are embedded, the second in the middle of the probes.
        with monkeypatch.context() as patch:
            if name == "first":
                patch.setattr(features.sharding, "place", stop_after(place, calls))
            else:
                patch.setattr(scores, "linear", stop_after(scores.linear, calls))
            with pytest.raises(Stopped):
                quick(tmp_path / "cut", "sigreg", **settings)
        assert not (tmp_path / "cut" / "metrics.json").exists()

    linear, embed = scores.linear, features._embedded
    monkeypatch.setattr(scores, "linear", lambda *a, **k: scored.append(1) or linear(*a, **k))
    monkeypatch.setattr(features, "_embedded", lambda *a: embedded.append(1) or embed(*a))
    again, same_table = quick(tmp_path / "cut", "sigreg", **settings)
    assert again == whole
    assert [of["geometry"]["alignment"] for of in whole["features"].values()] == [0.25, 0.25]
    assert [of["geometry"]["alignment"] for of in whole["baselines"].values()] == [None, 0.5]
    assert same_table.splitlines()[2:] == table.splitlines()
    assert len(embedded) == 0
    # Of the whole vector, the mean token, pixels and the untrained encoder.
    assert len(scored) == 4 - 3
    assert not (tmp_path / "cut" / "unfinished").exists()


@pytest.mark.parametrize("changed", [{}, {"step": 1}, {"train.seed": 7}, {"evaluation.dtype": "bfloat16"}])
def test_a_pass_goes_on_after_the_last_whole_block_unless_anything_else_is_judged(
    quick, tmp_path, monkeypatch, changed
):
    settings = {"evaluation.batch_size": 128}
    with monkeypatch.context() as patch:
        patch.setattr(features.sharding, "place", stop_after(features.sharding.place, 5))
        with pytest.raises(Stopped):
            quick(tmp_path, **settings)
    embedded, embed = [], features._embedded
    monkeypatch.setattr(features, "_embedded", lambda *a: embedded.append(len(a[1])) or embed(*a))
    monkeypatch.setattr(run, "_score", stop_after(run._score, 0))
    with pytest.raises(Stopped):
        quick(tmp_path, **settings | changed)
    # Four of eleven blocks were written when the sixth was to be placed; the fifth was on its way.
    assert embedded == [128] * (10 if changed else 6) + [67] + [128] * 3 + [66]


def test_features_in_bfloat16_are_close_and_not_the_same(quick, tmp_path, features_only):
    in_float32, in_bfloat16 = (
        quick(tmp_path / dtype, **{"evaluation.dtype": dtype})[0]["features"]["q"] for dtype in ("float32", "bfloat16")
    )
    difference = np.abs(in_bfloat16 - in_float32).max() / np.abs(in_float32).max()
    assert 1e-4 < difference < 0.05
