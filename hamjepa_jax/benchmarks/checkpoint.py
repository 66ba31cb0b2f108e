"""What checkpoints cost: how much saving holds up the training loop, and how long restoring takes.

    python -m hamjepa_jax.benchmarks.checkpoint --json=results/checkpoint.json

The loop is that of training, with configs/cifar100.py in float32 on cuts out of photographs. A checkpoint is started
every few steps. What it costs is by how much these take longer than as many steps like those of their second half.
"""

import contextlib
import json
import runpy
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console
from threadpoolctl import threadpool_limits

from hamjepa_jax import build, environment, train
from hamjepa_jax.benchmarks import command_line
from hamjepa_jax.benchmarks.photographs import cuts
from hamjepa_jax.benchmarks.timing import use_cores
from hamjepa_jax.checkpoint import Checkpointer, Restored
from hamjepa_jax.loop import Loop
from hamjepa_jax.profiling import StepTrace
from hamjepa_jax.stopping import stop_on_request
from hamjepa_jax.telemetry import Telemetry

CORES = 2
NUM_IMAGES = 128
BATCH_SIZE = 64
# Steps between two checkpoints, and how many of those are measured.
PERIOD, NUM_SAVES = 10, 8
NUM_RESTORES = 5
QUIET = Console(quiet=True)


class TimedCheckpointer(Checkpointer):
    """Notes for how long every save has held up the loop."""

    def save(self, *arguments: Any, **keywords: Any) -> None:
        """Saves, and notes the time."""
        start = time.perf_counter()
        super().save(*arguments, **keywords)
        self.__dict__.setdefault("seconds", []).append(time.perf_counter() - start)


class TimedTelemetry(Telemetry):
    """Notes when every step has been recorded."""

    def record(self, *arguments: Any) -> dict[str, float]:
        """Records, and notes the time."""
        values = super().record(*arguments)
        self.__dict__.setdefault("times", []).append(time.perf_counter())
        return values


def make_config(folder: Path, *, mode: str, batch_size: int = BATCH_SIZE) -> ConfigDict:
    """The published CIFAR-100 experiment in float32, on a folder of cuts out of photographs.

    Args:
        folder: where the images are written.
        mode: `tokens`, as published, or `global`, the whole ResNet-18.
        batch_size: images in a batch, two views each.

    Returns:
        The config.
    """
    for number, image in enumerate(cuts(NUM_IMAGES, (32, 32))):
        path = folder / ("train", "val")[number % 3 == 0] / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    config = runpy.run_path("configs/cifar100.py")["get_config"]("hamjepa")
    config.data.name, config.data.data_dir = "photographs", str(folder)
    config.data.train_split, config.data.test_split = "train", "val"
    config.data.batch_size = batch_size
    config.model.dtype, config.model.mode = "float32", mode
    config.optimizer.warmup_epochs = 0
    return config


def measure_saving(config: ConfigDict, directory: Path, *, period: int, num_saves: int) -> dict[str, Any]:
    """Trains with a checkpoint every few steps.

    Args:
        config: the experiment.
        directory: where the checkpoints go.
        period: steps between two checkpoints, even.
        num_saves: how many are measured.

    Returns:
        {"seconds_per_step", "blocked_seconds", "seconds_per_save", "share_of_period", "period", "checkpoint_bytes"}: an
        undisturbed step, the time in which `save` holds up the loop, and all that a save costs it, medians.
    """
    experiment = build.experiment(config)
    setup = train.set_up(config, experiment)
    experiment = train.with_data_in_memory(config, experiment, QUIET)
    # The first period, in which the step is compiled, is left out.
    total_steps = period * (num_saves + 1)
    with (
        stop_on_request(grace_seconds=0) as stop,
        contextlib.closing(TimedCheckpointer(directory, keep=1)) as checkpointer,
        contextlib.closing(train.open_feed(config, experiment, setup, QUIET, first_step=0)) as feed,
        TimedTelemetry(
            None,
            console=QUIET,
            first_step=0,
            total_steps=total_steps,
            steps_per_epoch=1,
            views_per_step=2 * config.data.batch_size,
            every_steps=1,
        ) as telemetry,
        threadpool_limits(1, user_api="blas"),
        environment.reusing_memory(),
    ):
        Loop(
            train.jit_train_step(config, experiment, setup),
            train.jit_train_step(config, experiment, setup, several=True),
            setup.key,
            setup.mesh,
            Restored(0, setup.initialize(setup.key), {"next_step": 0}),
            feed=feed,
            checkpointer=checkpointer,
            telemetry=telemetry,
            trace=StepTrace(None, directory, QUIET.print),
            stop=stop,
            total_steps=total_steps,
            steps_per_dispatch=1,
            every_steps=period,
            every_minutes=None,
            best_metric=None,
            config=json.loads(config.to_json()),
        ).run()
        return saving_costs(np.diff(telemetry.times), checkpointer.seconds, period) | {
            "checkpoint_bytes": sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        }


def saving_costs(seconds_per_step: np.ndarray, seconds_in_save: Sequence[float], period: int) -> dict[str, Any]:
    """What a save costs, from the times of all steps but the first.

    Args:
        seconds_per_step: from the record of a step to that of the next; entry i belongs to step i + 1.
        seconds_in_save: of every save.
        period: steps between two saves, even.

    Returns:
        See `measure_saving`.
    """
    periods = seconds_per_step[period - 1 :].reshape(-1, period)
    # What is saved is recorded at once, other steps when the next is dispatched: the last of a period seems short, and
    # the first one long.
    undisturbed = periods[:, period // 2 : -1]
    cost = float(np.median(np.sum(periods, axis=1) - period * np.median(undisturbed, axis=1)))
    step = float(np.median(undisturbed))
    return {
        "seconds_per_step": step,
        "blocked_seconds": statistics.median(seconds_in_save),
        "seconds_per_save": cost,
        "period": period,
        "share_of_period": cost / (period * step),
    }


def measure_restoring(config: ConfigDict, directory: Path, *, repeats: int) -> dict[str, Any]:
    """Saves a state of random numbers, and restores it as a new process would.

    Args:
        config: the experiment.
        directory: where the checkpoint goes.
        repeats: how often it is restored.

    Returns:
        {"parameters", "checkpoint_bytes", "restore_seconds", "floor_seconds"}: median times of opening, verifying and
        reading the checkpoint, and of merely reading the bytes of its files.
    """
    setup = train.set_up(config, build.experiment(config))
    state, config_json = jax.tree.map(_noise, setup.initialize(setup.key)), json.loads(config.to_json())
    with contextlib.closing(Checkpointer(directory, keep=1)) as checkpointer:
        checkpointer.save(1, state, data={}, config=config_json, metrics={})
    files = [path for path in directory.rglob("*") if path.is_file()]
    restoring, reading = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        with contextlib.closing(Checkpointer(directory, keep=1, read_only=True)) as checkpointer:
            restored = checkpointer.restore(setup.abstract_state, setup.shardings, config=config_json)
            jax.block_until_ready(restored.state)
        restoring.append(time.perf_counter() - start)
        start = time.perf_counter()
        for path in files:
            path.read_bytes()
        reading.append(time.perf_counter() - start)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "checkpoint_bytes": sum(path.stat().st_size for path in files),
        "restore_seconds": statistics.median(restoring),
        "floor_seconds": statistics.median(reading),
    }


def _noise(leaf: jax.Array) -> jax.Array:
    # The moments of the optimizer are zero at first, which takes no room on the disk.
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jax.device_put(jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype), leaf.sharding)


def saving_table(measured: Mapping[str, Any]) -> str:
    """What a save costs, as a Markdown table.

    Args:
        measured: what `measure_saving` returned.

    Returns:
        The table; the last column is for the default of `checkpoint.every_minutes`.
    """
    cost = measured["seconds_per_save"]
    return "\n".join(
        [
            "| checkpoint, MB | step, s | save holds up the loop, ms | a save costs, ms | share, saved every "
            f"{measured['period']} steps | every 100 steps | every 10 minutes |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            f"| {measured['checkpoint_bytes'] / 1e6:.0f} | {measured['seconds_per_step']:.2f} "
            f"| {1e3 * measured['blocked_seconds']:.0f} | {1e3 * cost:.0f} | {measured['share_of_period']:.2%} "
            f"| {cost / (100 * measured['seconds_per_step']):.2%} | {cost / 600:.3%} |",
        ]
    )


def restoring_table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """How long restoring takes, as a Markdown table.

    Args:
        measured: by name of the model, what `measure_restoring` returned.

    Returns:
        The table.
    """
    lines = [
        "| model | parameters, M | checkpoint, MB | restore, s | reading the bytes, s | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in measured.items():
        lines.append(
            f"| {name} | {row['parameters'] / 1e6:.1f} | {row['checkpoint_bytes'] / 1e6:.0f} "
            f"| {row['restore_seconds']:.2f} | {row['floor_seconds']:.3f} "
            f"| {row['restore_seconds'] / row['floor_seconds']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures saving and restoring, prints the tables and writes the JSON."""
    options = command_line.parser(__doc__).parse_args()
    use_cores(CORES)
    environment.compute_in_the_calling_thread()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        published, whole = (make_config(folder / "images", mode=mode) for mode in ("tokens", "global"))
        restoring = {
            "ResNet-18, tokens": measure_restoring(published, folder / "tokens", repeats=NUM_RESTORES),
            "ResNet-18, global": measure_restoring(whole, folder / "global", repeats=NUM_RESTORES),
        }
        print(restoring_table(restoring))
        saving = measure_saving(published, folder / "saving", period=PERIOD, num_saves=NUM_SAVES)
        print(f"\n{saving_table(saving)}")
    command_line.write_json(options.json, {"saving": saving, "restoring": restoring})


if __name__ == "__main__":
    main()
