"""The evaluation of a run: every coordinate of the trained encoder beside raw pixels and the untrained encoder."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import track

from hamjepa_jax import build_data
from hamjepa_jax.build import Experiment
from hamjepa_jax.data.loading import EvaluationLoader
from hamjepa_jax.data.pipeline import blocks
from hamjepa_jax.data.sources import ArraySource, Source
from hamjepa_jax.errors import StorageError, require, require_known
from hamjepa_jax.evaluation import report
from hamjepa_jax.evaluation.features import Features, extract_features, in_order
from hamjepa_jax.evaluation.knn import knn_accuracy
from hamjepa_jax.evaluation.probe import few_label_probe, linear_probe
from hamjepa_jax.evaluation.spectra import spectrum
from hamjepa_jax.state import TrainState
from hamjepa_jax.step import make_feature_step

CHECKPOINTS = ("newest", "best")

TrainTest = tuple[np.ndarray, np.ndarray]


def check(config: ConfigDict, experiment: Experiment) -> None:
    """Makes sure that the evaluation asks for a known checkpoint, and for no more neighbours or labels than there are.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.

    Raises:
        UserError: naming the config key.
    """
    require_known(config.evaluation.checkpoint, CHECKPOINTS, "evaluation.checkpoint")
    ks, labels = config.evaluation.ks, config.evaluation.few_label_probe.labels_per_class
    examples = len(experiment.train_source)
    require(
        len(ks) > 0 and all(isinstance(k, int) and 1 <= k <= examples for k in ks),
        "evaluation.ks",
        f"must be numbers of neighbours between 1 and {examples}, got {ks}",
    )
    if experiment.train_source.labels is None:
        return
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
    feature_step = jax.jit(
        make_feature_step(
            encoder=experiment.encoder,
            preprocess=experiment.preprocess,
            coordinates=experiment.objective.coordinates,
        )
    )
    encoders = {"trained": partial(feature_step, state), "untrained": partial(feature_step, untrained)}
    train, test = (
        _features(config, source, encoders, console, name)
        for source, name in ((experiment.train_source, "training"), (experiment.test_source, "test"))
    )
    labels, num_classes = (train.labels, test.labels), experiment.train_source.num_classes
    features, random_features = (
        {on: (train.coordinates[name][on], test.coordinates[name][on]) for on in in_order(train.coordinates[name])}
        for name in encoders
    )
    headline = next(iter(features))
    baselines = {"pixels": (train.pixels, test.pixels), "random_encoder": random_features[headline]}

    with console.status("evaluating"):
        scores = {name: score(config, pair, labels, num_classes) for name, pair in {**features, **baselines}.items()}
    metrics = {
        "step": int(state.step),
        "seed": config.train.seed,
        "variant": config.variant,
        "features": {name: scores[name] for name in features},
        "baselines": {name: scores[name] for name in baselines},
    }
    report.print_table(metrics, console)
    clouds = {f"{config.variant} {headline}": features[headline][1], "untrained encoder": random_features[headline][1]}
    if jax.process_index() == 0:
        _write(metrics, clouds, directory)
    return metrics


def _write(metrics: dict[str, Any], clouds: dict[str, np.ndarray], directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replacement = directory / "metrics.tmp"
        replacement.write_text(json.dumps(metrics, indent=1) + "\n")
        replacement.replace(directory / "metrics.json")
        report.draw_summary(metrics, clouds, directory / "summary.png")
    except OSError as error:
        raise StorageError(f"{directory}: cannot be written ({error.strerror})") from error


def score(config: ConfigDict, features: TrainTest, labels: TrainTest, num_classes: int) -> dict[str, Any]:
    """All scores of one set of features.

    Args:
        config: the whole config.
        features: features of the training and of the test images.
        labels: labels of the training and of the test images.
        num_classes: number of classes.

    Returns:
        {"dim", "knn", "linear_probe", "few_label_probe", "spectrum"}, the spectrum that of the training features.
    """
    train_x, test_x = features
    data = (train_x, labels[0], test_x, labels[1])
    seed = config.train.seed
    return {
        "dim": train_x.shape[1],
        "knn": knn_accuracy(*data, ks=config.evaluation.ks, num_classes=num_classes),
        "linear_probe": linear_probe(*data, num_classes=num_classes, seed=seed, **config.evaluation.probe),
        "few_label_probe": few_label_probe(
            *data, num_classes=num_classes, seed=seed, **config.evaluation.few_label_probe
        ),
        "spectrum": spectrum(train_x),
    }


def _features(
    config: ConfigDict, source: Source, encoders: dict[str, Callable], console: Console, name: str
) -> Features:
    """Reads and embeds all images of a source, with a progress bar."""
    block_size = min(config.evaluation.batch_size, len(source))
    loaded = blocks(
        EvaluationLoader(source, size=config.data.view_size, resize=config.evaluation.resize),
        len(source),
        build_data.skipped_records(config.data, console),
        block_size=block_size,
        # What is in memory already is read fastest from there.
        num_workers=0 if isinstance(source, ArraySource) else build_data.num_workers(config.data),
    )
    bar = track(
        loaded,
        description=f"embedding {name} images",
        total=-(-len(source) // block_size),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    return extract_features(encoders, bar, block_size=block_size)
