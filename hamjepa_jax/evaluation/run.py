"""The evaluation of a run: every coordinate of the trained encoder beside raw pixels and the untrained encoder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from hamjepa_jax.build import Experiment
from hamjepa_jax.data.sources import ArraySource
from hamjepa_jax.errors import require
from hamjepa_jax.evaluation import report
from hamjepa_jax.evaluation.features import coordinates, extract_features
from hamjepa_jax.evaluation.knn import knn_accuracy
from hamjepa_jax.evaluation.probe import few_label_probe, linear_probe
from hamjepa_jax.evaluation.spectra import spectrum
from hamjepa_jax.state import TrainState
from hamjepa_jax.step import make_feature_step

TrainTest = tuple[np.ndarray, np.ndarray]


def check(config: ConfigDict, experiment: Experiment) -> None:
    """Makes sure that the evaluation asks for no more neighbours or labels than there are.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.

    Raises:
        UserError: naming the config key.
    """
    ks, labels = config.evaluation.ks, config.evaluation.few_label_probe.labels_per_class
    examples = len(experiment.train_source)
    require(
        len(ks) > 0 and all(isinstance(k, int) and 1 <= k <= examples for k in ks),
        "evaluation.ks",
        f"must be numbers of neighbours between 1 and {examples}, got {ks}",
    )
    fewest = int(np.bincount(experiment.train_source.labels).min())
    require(
        1 <= labels <= fewest,
        "evaluation.few_label_probe.labels_per_class",
        f"must be between 1 and the {fewest} images of the smallest class, got {labels}",
    )


def evaluate(
    config: ConfigDict,
    experiment: Experiment,
    state: TrainState,
    untrained: TrainState,
    *,
    directory: Path,
    console: Console,
) -> dict[str, Any]:
    """Judges the frozen encoder by kNN, linear probes and spectra; prints a table, writes numbers and a picture.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        state: the trained state.
        untrained: the initial state, for the baseline.
        directory: where metrics.json and summary.png go.
        console: where the table is shown.

    Returns:
        What metrics.json holds: {"step", "seed", "variant", "features": {name: scores}, "baselines": {"pixels": scores,
        "random_encoder": scores}}. The untrained encoder is judged in the first, the headline coordinate.
    """
    train_source, test_source = experiment.train_source, experiment.test_source
    feature_step = jax.jit(make_feature_step(encoder=experiment.encoder, preprocess=experiment.preprocess))

    def embed_with(state: TrainState) -> Callable[[jax.Array], jax.Array]:
        return lambda images: feature_step(state.params["encoder"], state.batch_stats, images)

    trained_z, untrained_z = (
        [
            extract_features(embed_with(s), source.images, batch_size=config.evaluation.batch_size)
            for source in (train_source, test_source)
        ]
        for s in (state, untrained)
    )
    split_qp = config.objective.name == "hamjepa"
    features = _train_test_coordinates(trained_z, split_qp=split_qp)
    headline = next(iter(features))
    random_features = _train_test_coordinates(untrained_z, split_qp=split_qp)[headline]
    pixels = tuple(source.images.reshape(len(source), -1) / np.float32(255.0) for source in (train_source, test_source))

    with console.status("evaluating"):
        scores = {
            name: score(config, pair, train_source, test_source)
            for name, pair in {**features, "pixels": pixels, "random_encoder": random_features}.items()
        }
    metrics = {
        "step": int(state.step),
        "seed": config.train.seed,
        "variant": config.variant,
        "features": {name: scores[name] for name in features},
        "baselines": {name: scores[name] for name in ("pixels", "random_encoder")},
    }
    directory.mkdir(parents=True, exist_ok=True)
    replacement = directory / "metrics.tmp"
    replacement.write_text(json.dumps(metrics, indent=1) + "\n")
    replacement.replace(directory / "metrics.json")
    report.print_table(metrics, console)
    clouds = {f"{config.variant} {headline}": features[headline][1], "untrained encoder": random_features[1]}
    report.draw_summary(metrics, clouds, directory / "summary.png")
    return metrics


def score(
    config: ConfigDict, features: TrainTest, train_source: ArraySource, test_source: ArraySource
) -> dict[str, Any]:
    """All scores of one set of features.

    Args:
        config: the whole config.
        features: features of the training and of the test images.
        train_source: the training images, for their labels.
        test_source: the test images, for their labels.

    Returns:
        {"dim", "knn", "linear_probe", "few_label_probe", "spectrum"}, the spectrum that of the training features.
    """
    train_x, test_x = features
    data = (train_x, train_source.labels, test_x, test_source.labels)
    num_classes, seed = len(train_source.class_names), config.train.seed
    return {
        "dim": train_x.shape[1],
        "knn": knn_accuracy(*data, ks=config.evaluation.ks, num_classes=num_classes),
        "linear_probe": linear_probe(*data, num_classes=num_classes, seed=seed, **config.evaluation.probe),
        "few_label_probe": few_label_probe(
            *data, num_classes=num_classes, seed=seed, **config.evaluation.few_label_probe
        ),
        "spectrum": spectrum(train_x),
    }


def _train_test_coordinates(z: list[np.ndarray], *, split_qp: bool) -> dict[str, TrainTest]:
    train, test = (coordinates(part, split_qp=split_qp) for part in z)
    return {name: (train[name], test[name]) for name in train}
