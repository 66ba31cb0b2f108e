"""The evaluation of a run: every coordinate of the trained encoder beside raw pixels and the untrained encoder."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import track

from hamjepa_jax import build_data, build_model, distributed, environment, sharding, version
from hamjepa_jax.atomic_files import replacing, write_json
from hamjepa_jax.build import Experiment
from hamjepa_jax.data.loading import EvaluationLoader
from hamjepa_jax.data.pipeline import blocks
from hamjepa_jax.data.sources import ArraySource, Source
from hamjepa_jax.errors import require, require_known, require_numbers
from hamjepa_jax.evaluation import pictures, summary
from hamjepa_jax.evaluation.features import Embed, Features, extract_features, in_order, read_features
from hamjepa_jax.evaluation.geometry import state_geometry
from hamjepa_jax.evaluation.pairs import alignments
from hamjepa_jax.evaluation.progress import Progress
from hamjepa_jax.evaluation.scores import Labelled, score
from hamjepa_jax.state import TrainState
from hamjepa_jax.step import make_feature_step

CHECKPOINTS = ("newest", "best")
DTYPES = ("float32", "bfloat16")


def check(config: ConfigDict, experiment: Experiment) -> None:
    """Makes sure that the evaluation asks for what is known, and for no more neighbours or labels than there are.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.

    Raises:
        UserError: naming the config key.
    """
    settings = config.evaluation
    require_known(settings.checkpoint, CHECKPOINTS, "evaluation.checkpoint")
    if settings.dtype is not None:
        require_known(settings.dtype, DTYPES, "evaluation.dtype")
    require(settings.temperature > 0, "evaluation.temperature", f"must be positive, got {settings.temperature}")
    require_numbers(settings.probe.learning_rates, float, "evaluation.probe.learning_rates")
    ks, examples = settings.ks, len(experiment.train_source)
    require(
        len(ks) > 0 and all(isinstance(k, int) and 1 <= k <= examples for k in ks),
        "evaluation.ks",
        f"must be numbers of neighbours between 1 and {examples}, got {ks}",
    )
    fractions = settings.few_label_probe.fractions
    require(
        all(isinstance(fraction, (int, float)) and 0 < fraction <= 1 for fraction in fractions),
        "evaluation.few_label_probe.fractions",
        f"must be numbers above 0 and at most 1, got {fractions}",
    )
    if experiment.train_source.labels is None:
        return
    fewest = int(np.bincount(experiment.train_source.labels).min())
    labels = settings.few_label_probe.labels_per_class
    require(
        all(isinstance(number, int) and 1 <= number <= fewest for number in labels),
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
    """Judges the frozen encoder; prints a table, writes numbers and pictures. Called again, it goes on where it was.

    Several processes share the images; each then computes all scores by itself, and the primary one writes them.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        state: the trained state, on one device of this process.
        untrained: the initial state, for the baseline, on one device of this process.
        directory: where metrics.json, summary.png and pictures.npz go.
        console: where the table is shown.

    Returns:
        What metrics.json holds: {"step", "seed", "variant", "num_classes", "class_names", "num_train", "num_test",
        "features": {name: scores}, "baselines": {"pixels": scores, "random_encoder": scores}, "state"}, see
        `scores.score`. The untrained encoder is judged in the first, the headline coordinate.

    Raises:
        StorageError: if something cannot be written; what was computed is kept.
    """
    mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.local_devices())
    encoders = _encoders(config, experiment, {"trained": state, "untrained": untrained}, mesh)
    progress = _open_progress(config, state, directory)
    train, test = (
        _features(config, source, encoders, mesh, progress, console, name)
        for source, name in ((experiment.train_source, "training"), (experiment.test_source, "test"))
    )
    features, random_features = (
        {on: (train.coordinates[name][on], test.coordinates[name][on]) for on in in_order(train.coordinates[name])}
        for name in encoders
    )
    headline = next(iter(features))
    baselines = {"pixels": (train.pixels, test.pixels), "random_encoder": random_features[headline]}
    with console.status("evaluating") as status:
        compute = partial(alignments, config, experiment, [state, untrained], console)
        aligned, untrained_aligned = _part(progress, status.update, "two views", "alignment", compute)
        aligned |= {"random_encoder": untrained_aligned[headline]}
        scores = {}
        for name, (train_x, test_x) in (features | baselines).items():
            part = partial(_part, progress, status.update, name)
            data = Labelled(train_x, train.labels, test_x, test.labels, aligned.get(name))
            scores[name] = _score(config, data, part, experiment.train_source.num_classes, mesh)
        state_scores = None
        if {"q", "p"} <= features.keys():
            halves = features["q"][0], features["p"][0]
            compute = partial(state_geometry, *halves, seed=config.train.seed)
            state_scores = _part(progress, status.update, "q and p", "geometry", compute)
        metrics = {
            "step": int(state.step),
            "seed": config.train.seed,
            "variant": config.variant,
            "num_classes": experiment.train_source.num_classes,
            "class_names": list(experiment.train_source.class_names),
            "num_train": len(train.labels),
            "num_test": len(test.labels),
            "features": {name: scores[name] for name in features},
            "baselines": {name: scores[name] for name in baselines},
            "state": state_scores,
        }
        if distributed.is_primary():
            status.update("drawing")
            with replacing(directory / "summary.png") as picture:
                summary.draw_summary(metrics, picture)
            _write_pictures(config, experiment, (train, test), headline, directory / "pictures.npz")
            write_json(directory / "metrics.json", metrics)
    summary.print_table(metrics, console)
    # No process reads any longer what is removed.
    distributed.agreed(0)
    if distributed.is_primary():
        progress.remove()
    return metrics


def _encoders(
    config: ConfigDict, experiment: Experiment, states: Mapping[str, TrainState], mesh: Mesh
) -> dict[str, Embed]:
    """The jitted encoder with each of the states, on all devices of the mesh."""
    encoder = experiment.encoder
    if config.evaluation.dtype is not None:
        model = config.model.copy_and_resolve_references()
        model.dtype = config.evaluation.dtype
        encoder = build_model.encoder(model)
    feature_step = environment.jit_quickly(
        make_feature_step(
            encoder=encoder, preprocess=experiment.preprocess, coordinates=experiment.objective.coordinates
        ),
        out_shardings=sharding.batch_sharding(mesh),
    )
    placed = jax.device_put(dict(states), sharding.replicated(mesh))
    return {name: partial(feature_step, placed[name]) for name in states}


def _open_progress(config: ConfigDict, state: TrainState, directory: Path) -> Progress:
    """What this evaluation did before it was interrupted; another's counts for nothing."""
    of = {
        "step": int(state.step),
        "program": version.program_of(version.code_version()),
        **{group: config[group].to_dict() for group in ("data", "model", "evaluation")},
        "seed": config.train.seed,
    }
    opened = None
    if distributed.is_primary():
        opened = Progress(directory / "unfinished", of)
    # The others look when it is there.
    distributed.agreed(0)
    return opened or Progress(directory / "unfinished", of, writes_results=False)


def _features(
    config: ConfigDict,
    source: Source,
    encoders: Mapping[str, Embed],
    mesh: Mesh,
    progress: Progress,
    console: Console,
    name: str,
) -> Features:
    """Reads and embeds what is this process's share of the images of a source, with a progress bar."""
    number, count = jax.process_index(), jax.process_count()
    parts = [f"{name}-{process}-of-{count}" for process in range(count)]
    kept = progress.rows(parts[number])
    first, end = number * len(source) // count, (number + 1) * len(source) // count
    block_size = min(config.evaluation.batch_size, end - first)
    total = -(-(end - first) // block_size)
    if kept.num_blocks:
        console.print(f"embedding {name} images: going on after {kept.num_blocks} of {total} blocks")
    loaded = blocks(
        _loader(config, source),
        end,
        build_data.skipped_records(config.data, console),
        block_size=block_size,
        # What is in memory already is read fastest from there.
        num_workers=0 if isinstance(source, ArraySource) else build_data.num_workers(config.data),
        first=first + kept.num_blocks * block_size,
    )
    bar = track(
        loaded,
        description=f"embedding {name} images",
        total=total,
        completed=kept.num_blocks,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    extract_features(encoders, bar, block_size=block_size, mesh=mesh, kept=kept)
    # The others' shares are there.
    distributed.agreed(0)
    return read_features([progress.rows(part) for part in parts])


def _loader(config: ConfigDict, source: Source) -> EvaluationLoader:
    return EvaluationLoader(source, size=config.data.view_size, resize=config.evaluation.resize)


def _part(progress: Progress, show: Callable[[str], None], name: str, part: str, compute: Callable[[], Any]) -> Any:
    """A part of the scores, computed unless it is known from before."""
    show(f"evaluating {name}: {part}")
    return progress.result(f"{name}: {part}", compute)


def _score(config: ConfigDict, data: Labelled, part: Callable[..., Any], num_classes: int, mesh: Mesh) -> dict:
    settings = config.evaluation
    return score(
        data,
        part,
        num_classes=num_classes,
        ks=settings.ks,
        temperature=settings.temperature,
        probe=settings.probe,
        few_labels=settings.few_label_probe,
        seed=config.train.seed,
        mesh=mesh,
    )


def _write_pictures(
    config: ConfigDict, experiment: Experiment, features: tuple[Features, Features], headline: str, path: Path
) -> None:
    gallery, queries = (
        pictures.LabelledFeatures(
            known.coordinates["trained"][headline], known.labels, known.example_ids, _loader(config, source)
        )
        for known, source in zip(features, (experiment.train_source, experiment.test_source), strict=True)
    )
    seed = config.train.seed
    drawn = pictures.neighbour_sheet(gallery, queries, seed=seed)
    drawn |= pictures.embedding_map(queries.x, queries.labels, seed=seed)
    with replacing(path) as replacement, replacement.open("wb") as file:
        np.savez_compressed(file, **drawn)
