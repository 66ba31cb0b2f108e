"""The world model of a run: embeds the films, measures, prints a table, and writes numbers and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from hamjepa_jax import distributed
from hamjepa_jax.atomic_files import plain, write_json
from hamjepa_jax.build import Experiment
from hamjepa_jax.data.pendulum import FilmSource
from hamjepa_jax.environment import jit_quickly
from hamjepa_jax.evaluation import world_model, world_model_picture
from hamjepa_jax.evaluation.diagnose import trained_predictor
from hamjepa_jax.evaluation.world_model import Embedded
from hamjepa_jax.state import TrainState

# Films that are embedded at a time.
BLOCK_SIZE = 512
SHOWN_APPLICATIONS = (0, 10, 100, 1000)


def can_judge(config: ConfigDict, experiment: Experiment) -> bool:
    """Whether a run is a world model: its views are those of films, and its embeddings states of as many pendula.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.

    Returns:
        True if `judge` has something to compare.
    """
    source = experiment.test_source
    return isinstance(source, FilmSource) and config.model.split_qp and config.model.out_dim == source.states.shape[-1]


def judge(config: ConfigDict, experiment: Experiment, state: TrainState, *, directory: Path, console: Console) -> None:
    """Compares what a run has learned with the true motion; prints a table, writes world_model.json and .png.

    The primary process does it alone while the others wait.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it, with films as its sources.
        state: the trained state, on one device of this process.
        directory: where both files go.
        console: where the table is shown.

    Raises:
        StorageError: if a file cannot be written.
    """
    distributed.on_primary(lambda: _judge(config, experiment, state, directory, console))


def _judge(config: ConfigDict, experiment: Experiment, state: TrainState, directory: Path, console: Console) -> None:
    trained = trained_predictor(config, experiment, state)
    with console.status("comparing the world model with the world"):
        train, test = (_embed(experiment, state, s) for s in (experiment.train_source, experiment.test_source))
        z_TxRxD = world_model.roll_out(trained, test.z[: world_model.NUM_STARTS])
        found = {
            "step": int(state.step),
            "seed": config.train.seed,
            "variant": config.variant,
            "data": config.data.name,
            "num_starts": z_TxRxD.shape[1],
            "readings": world_model.readings(train, test),
            "long_runs": world_model.long_runs(trained, z_TxRxD, train, test),
        }
        world_model_picture.draw(found, test, z_TxRxD, directory / "world_model.png")
        write_json(directory / "world_model.json", plain(found, digits=6))
    print_table(plain(found), console)


def _embed(experiment: Experiment, state: TrainState, source: FilmSource) -> Embedded:
    @jit_quickly
    def embed(images: jax.Array) -> jax.Array:
        variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
        return experiment.encoder.apply(variables, experiment.preprocess(images), train=False)

    images = np.stack([source.still(i)["image"] for i in range(len(source))])
    # The last block is filled up, so that one compilation serves all.
    blocks = np.resize(images, (-(-len(images) // BLOCK_SIZE), BLOCK_SIZE, *images.shape[1:]))
    z = np.concatenate([np.asarray(embed(block), np.float32) for block in blocks])
    return Embedded(z[: len(images)], source.states[:, 0])


def print_table(found: Mapping[str, Any], console: Console) -> None:
    """Prints the main numbers as one aligned table.

    Args:
        found: what world_model.json holds.
        console: where to print.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left", title_style="italic")
    table.title = f"{found['variant']}, step {found['step']}, seed {found['seed']}: world model of {found['data']}"
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    read, runs = found["readings"], found["long_runs"]
    every = world_model.OBSERVED_EVERY
    shown = [n for n in SHOWN_APPLICATIONS if n // every < len(runs["time"])]
    for name, key, crossed in (
        ("angle from q, R²", "angle_from_q", "angle_from_p"),
        ("velocity from p, R²", "velocity_from_p", "velocity_from_q"),
    ):
        shifted = f"{read[f'shifted_{key}']:.3f} at t {read['time_shift']:+.1f}"
        table.add_row(name, f"{read[key]:.3f}", f"{shifted}; other half: {read[crossed]:.3f}")
    if runs["energy_rank_correlation"] is not None:
        table.add_row("H against the energy", f"{runs['energy_rank_correlation']:.3f}", "rank correlation")
    for name, key, unit in (
        ("drift of H", "learned_energy_drift", "std"),
        ("error of the energy", "energy_error", "std"),
        ("error of the angle", "angle_error", "rad"),
    ):
        if runs[key] is not None:
            *before, last = (_shown(runs[key]["median"][n // every]) for n in shown)
            table.add_row(name, f"{last} {unit}", f"before: {', '.join(before)}")
    table.add_row("error of the period", _shown(runs["period_error"], percent=True), "")
    table.add_row("still swinging", _shown(runs["still_swinging"], percent=True), "in the last tenth")
    console.print(table)
    *counts, last = (f"{n:,}" for n in shown)
    console.print(
        f"medians over {found['num_starts']} test films, after {last} applications of the predictor\n"
        f"before: after {', '.join(counts)}; std: in standard deviations over the films"
    )


def _shown(value: float | None, *, percent: bool = False) -> str:
    if value is None:
        return "undefined"
    return f"{100 * value:.3g} %" if percent else f"{value:.2g}"
