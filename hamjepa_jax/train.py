"""The training loop: mesh, initial or restored state, steps, log, checkpoints, and clean stops."""

import contextlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from threadpoolctl import threadpool_limits

from hamjepa_jax import build_data, build_monitoring, distributed, environment, sharding
from hamjepa_jax.build import Experiment
from hamjepa_jax.checkpoint import BEST_MODES, Checkpointer, Restored
from hamjepa_jax.data.sources import ArraySource
from hamjepa_jax.errors import Interrupted, UserError, require, require_known
from hamjepa_jax.feed import Feed
from hamjepa_jax.loop import Loop
from hamjepa_jax.profiling import StepTrace, parse_steps
from hamjepa_jax.state import TrainState
from hamjepa_jax.step import Loss, make_loss, make_train_step
from hamjepa_jax.stopping import stop_on_request
from hamjepa_jax.telemetry import Telemetry
from hamjepa_jax.workdir import Workdir


class Setup(NamedTuple):
    """What initialisation and restoring need, computed once.

    Attributes:
        mesh: the device mesh.
        key: the key of the run, on every device.
        loss: the loss of a batch, see `step.make_loss`, for parameters placed on the mesh.
        initialize: jitted, PRNG key → the initial state, placed on the mesh.
        abstract_state: its shapes and dtypes.
        shardings: its placement.
    """

    mesh: Mesh
    key: jax.Array
    loss: Loss
    initialize: Callable[[jax.Array], TrainState]
    abstract_state: TrainState
    shardings: TrainState


def set_up(config: ConfigDict, experiment: Experiment, devices: Sequence[jax.Device] | None = None) -> Setup:
    """Makes the mesh, the loss on it, and the jitted initialisation with its output shardings.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        devices: the devices to use, or None for all of all processes.

    Returns:
        The set-up.

    Raises:
        UserError: if the mesh or the batch does not fit the devices, or what is to watch the run is not installed.
    """
    build_monitoring.check(config)
    try:
        mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, devices=devices)
    except ValueError as error:
        raise UserError(f"config.mesh: {error}") from None
    batch_size, microbatches = config.data.batch_size, config.train.microbatches
    require(
        batch_size % (mesh.size * microbatches) == 0,
        "data.batch_size",
        f"must be a multiple of {mesh.size * microbatches}, {mesh.size} devices times {microbatches} "
        f"config.train.microbatches, got {batch_size}",
    )
    require(
        config.train.steps_per_dispatch >= 1,
        "train.steps_per_dispatch",
        f"must be at least 1, got {config.train.steps_per_dispatch}",
    )
    parse_steps(config.profile)
    require_known(config.checkpoint.best_mode, BEST_MODES, "checkpoint.best_mode")
    key = jax.jit(partial(jax.random.key, config.train.seed), out_shardings=sharding.replicated(mesh))()
    abstract_state = jax.eval_shape(experiment.initial_state, key)
    shardings = sharding.state_sharding(mesh, abstract_state)
    loss = make_loss(
        encoder=experiment.encoder,
        views=experiment.views,
        objective=experiment.objective,
        microbatches=microbatches,
    )
    return Setup(
        mesh=mesh,
        key=key,
        loss=sharding.with_whole_parameters(loss, mesh),
        initialize=environment.jit_quickly(experiment.initial_state, out_shardings=shardings),
        abstract_state=abstract_state,
        shardings=shardings,
    )


def with_data_in_memory(config: ConfigDict, experiment: Experiment, console: Console) -> Experiment:
    """Reads the data sets that are small enough to lie on the device.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        console: where progress is shown.

    Returns:
        The experiment with these data sets in memory.

    Raises:
        UserError: if too many images cannot be read.
    """
    data = config.data
    return experiment._replace(
        train_source=build_data.in_memory(data, experiment.train_source, console, f"{data.name} {data.train_split}"),
        test_source=build_data.in_memory(data, experiment.test_source, console, f"{data.name} {data.test_split}"),
    )


def restore(config: ConfigDict, setup: Setup, workdir: Workdir, console: Console) -> TrainState:
    """Reads the checkpoint of a run that is to be evaluated, and changes nothing in the directory.

    Args:
        config: the whole config.
        setup: what `set_up` returned.
        workdir: the directory of the run.
        console: where damaged checkpoints are named.

    Returns:
        The newest state, or the best by `checkpoint.best_metric`.

    Raises:
        UserError: if there is no such checkpoint.
    """
    with contextlib.closing(_checkpointer(config, workdir, console, read_only=True)) as checkpointer:
        step = None
        if config.evaluation.checkpoint == "best":
            step = checkpointer.best_step()
            if step is None:
                raise UserError(
                    "config.evaluation.checkpoint: there is no best checkpoint, because no metric was named in "
                    "training; take 'newest', or train with --config.checkpoint.best_metric"
                )
        restored = checkpointer.restore(
            setup.abstract_state, setup.shardings, config=json.loads(config.to_json()), step=step
        )
    if restored is None:
        raise UserError(f"--workdir={workdir.path}: no checkpoint here; train first")
    return restored.state


def _checkpointer(config: ConfigDict, workdir: Workdir, console: Console, *, read_only: bool) -> Checkpointer:
    return Checkpointer(
        workdir.checkpoints,
        keep=config.checkpoint.keep,
        best_metric=config.checkpoint.best_metric or None,
        best_mode=config.checkpoint.best_mode,
        read_only=read_only,
        report=console.print,
    )


def train(config: ConfigDict, experiment: Experiment, setup: Setup, workdir: Workdir, console: Console) -> TrainState:
    """Trains from the newest intact checkpoint of the workdir, or from the start, to the last step.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        setup: what `set_up` returned.
        workdir: the directory of the run, claimed.
        console: where progress is shown.

    Returns:
        The final state, which is also the newest checkpoint.

    Raises:
        Interrupted: on SIGINT, SIGTERM or a preemption notice, after saving.
        NonFiniteError: if too many losses or gradients are not finite, after saving the last good state.
        StorageError: if a checkpoint or the log cannot be written.
        UserError: if the checkpoints do not fit the config, or too many records cannot be read, after saving.
    """
    config_json = json.loads(config.to_json())
    stopping = stop_on_request(grace_seconds=config.checkpoint.grace_seconds)
    # Outermost, so that the last save, too, is made within the grace time.
    with stopping as stop, contextlib.closing(_checkpointer(config, workdir, console, read_only=False)) as checkpointer:
        restored = checkpointer.restore(setup.abstract_state, setup.shardings, config=config_json)
        num_examples = len(experiment.train_source)
        if restored is None:
            # All that decides which examples come next, besides the config.
            data = {"next_step": 0, "num_examples": num_examples}
            restored = Restored(0, setup.initialize(setup.key), data)
        first_step = restored.step
        if first_step >= experiment.total_steps:
            console.print(f"{workdir.path}: training is finished at step {first_step}")
            return restored.state
        if first_step:
            console.print(f"{workdir.path}: going on from step {first_step}")
        # A run that was imported has not seen any.
        restored.data.setdefault("num_examples", num_examples)
        require(
            restored.data["num_examples"] == num_examples,
            "data.data_dir",
            f"has {num_examples} training images, and had {restored.data['num_examples']} when the run was saved, so "
            "that it cannot go on exactly; bring the data back, or begin anew in another --workdir",
        )
        probe = build_monitoring.online_probe(config, experiment, setup.mesh, console)
        event_logs = build_monitoring.open_event_logs(config, workdir)
        for log in event_logs:
            log.begin(first_step, config_json)
            if first_step == 0 and workdir.views_file.exists():
                log.picture(0, "views", workdir.views_file)
        telemetry = Telemetry(
            workdir.log_file if distributed.is_primary() else None,
            console=console,
            first_step=first_step,
            total_steps=experiment.total_steps,
            steps_per_epoch=experiment.steps_per_epoch,
            views_per_step=(config.data.num_global_views + config.data.num_local_views) * config.data.batch_size,
            every_steps=config.log.every_steps,
            event_logs=event_logs,
        )
        feed = open_feed(config, experiment, setup, console, first_step=restored.data["next_step"])
        # XLA calls LAPACK for the small decompositions of the floors; its threads would spin against XLA's own.
        blas = threadpool_limits(1, user_api="blas")
        trace = StepTrace(parse_steps(config.profile), workdir.profile, console.print)
        with contextlib.closing(feed), telemetry, blas, environment.reusing_memory(), trace:
            loop = Loop(
                jit_train_step(config, experiment, setup),
                jit_train_step(config, experiment, setup, several=True),
                setup.key,
                setup.mesh,
                restored,
                feed=feed,
                checkpointer=checkpointer,
                telemetry=telemetry,
                trace=trace,
                stop=stop,
                total_steps=experiment.total_steps,
                steps_per_dispatch=_steps_per_dispatch(config, console),
                every_steps=config.checkpoint.every_steps,
                every_minutes=config.checkpoint.every_minutes,
                best_metric=config.checkpoint.best_metric or None,
                config=config_json,
                probe=probe,
            )
            state = loop.run()
    if stop.signal_number is not None:
        # Asked while the last step was made or saved.
        raise Interrupted(experiment.total_steps, stop.signal_number, stop.reason)
    return state


def _steps_per_dispatch(config: ConfigDict, console: Console) -> int:
    count = config.train.steps_per_dispatch
    if count > 1 and environment.loops_are_slow():
        console.print(f"config.train.steps_per_dispatch: 1 and not {count}, which is slower on a CPU")
        return 1
    return count


def open_feed(config: ConfigDict, experiment: Experiment, setup: Setup, console: Console, *, first_step: int) -> Feed:
    """Places the training images on the devices if they are in memory and fit, and else starts to read batches.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        setup: what `set_up` returned.
        console: where records that cannot be read are named.
        first_step: the step whose batch comes first.

    Returns:
        The feed, to be closed.
    """
    source, seed = experiment.train_source, config.train.seed
    if isinstance(source, ArraySource) and build_data.fits_on_device(config.data, source):
        return Feed.resident(source, setup.mesh, batch_size=config.data.batch_size, seed=seed, first_step=first_step)
    batches = build_data.batches(
        config.data,
        source,
        build_data.skipped_records(config.data, console),
        seed=seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return Feed.streamed(batches, setup.mesh, first_step=first_step)


def jit_train_step(
    config: ConfigDict, experiment: Experiment, setup: Setup, *, several: bool = False
) -> Callable[..., Any]:
    """The jitted step on the mesh, with what the loop wants to know besides, or several steps as one program.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        setup: what `set_up` returned.
        several: whether batches and metrics have a leading axis of steps, the first of which is told.

    Returns:
        See `loop.Loop`: (state, key, step, requests, dataset, batch) → (state, metrics, greatest request), the state
        donated, the learning rate of the update among the metrics.
    """
    train_step = make_train_step(
        loss=setup.loss,
        optimizer=experiment.optimizer,
        terms=experiment.objective.terms,
        max_skipped_steps=config.train.max_skipped_steps,
    )

    def one(state, key, step, dataset, batch):
        learning_rate = experiment.learning_rate(state.step - state.skipped)
        state, metrics = train_step(state, key, step, dataset, batch)
        return state, metrics | {"learning_rate": learning_rate}

    def step_and_agree(state, key, step, requests, dataset, batch):
        return *one(state, key, step, dataset, batch), jnp.max(requests)

    def steps_and_agree(state, key, first_step, requests, dataset, batches):
        count = jax.tree.leaves(batches)[0].shape[0]
        numbered = (first_step + jnp.arange(count, dtype=first_step.dtype), batches)
        made = jax.lax.scan(lambda state, of_step: one(state, key, of_step[0], dataset, of_step[1]), state, numbered)
        return *made, jnp.max(requests)

    everywhere = sharding.replicated(setup.mesh)
    return jax.jit(
        steps_and_agree if several else step_and_agree,
        donate_argnums=0,
        out_shardings=(setup.shardings, everywhere, everywhere),
        compiler_options=environment.compiler_options(config.train.compiler_options),
    )
