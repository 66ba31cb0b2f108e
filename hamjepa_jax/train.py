"""The training loop: mesh, initial or restored state, steps, log, checkpoints, and clean stops."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from threadpoolctl import threadpool_limits

from hamjepa_jax import build_data, sharding
from hamjepa_jax.build import Experiment
from hamjepa_jax.checkpoint import Checkpointer
from hamjepa_jax.data.sources import ArraySource
from hamjepa_jax.errors import Interrupted, NonFiniteError, UserError, require
from hamjepa_jax.feed import Feed
from hamjepa_jax.state import TrainState
from hamjepa_jax.step import Loss, make_loss, make_train_step
from hamjepa_jax.telemetry import Telemetry
from hamjepa_jax.workdir import Workdir


class StopRequest:
    """The signal that asked the loop to stop, or None."""

    signal_number: int | None = None


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
        UserError: if the mesh or the batch does not fit the devices.
    """
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
        initialize=jax.jit(experiment.initial_state, out_shardings=shardings),
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


def restore(config: ConfigDict, setup: Setup, workdir: Workdir) -> TrainState:
    """Reads the newest checkpoint of a run.

    Args:
        config: the whole config.
        setup: what `set_up` returned.
        workdir: the directory of the run.

    Returns:
        The state.

    Raises:
        UserError: if there is no checkpoint.
    """
    missing = UserError(f"--workdir={workdir.path}: no checkpoint here; train first")
    if not workdir.checkpoints.is_dir():
        raise missing
    with contextlib.closing(Checkpointer(workdir.checkpoints, keep=config.checkpoint.keep)) as checkpointer:
        step = checkpointer.newest_step()
        if step is None:
            raise missing
        return checkpointer.restore(step, setup.abstract_state, setup.shardings)


def train(config: ConfigDict, experiment: Experiment, setup: Setup, workdir: Workdir, console: Console) -> TrainState:
    """Trains from the newest checkpoint of the workdir, or from the start, to the last step.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        setup: what `set_up` returned.
        workdir: the directory of the run, claimed.
        console: where progress is shown.

    Returns:
        The final state, which is also the newest checkpoint.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving.
        NonFiniteError: if the loss or a gradient is not finite, after saving the last good state.
        UserError: if too many records cannot be read, after saving.
    """
    with contextlib.closing(Checkpointer(workdir.checkpoints, keep=config.checkpoint.keep)) as checkpointer:
        first_step = checkpointer.newest_step() or 0
        if first_step:
            state = checkpointer.restore(first_step, setup.abstract_state, setup.shardings)
        else:
            state = setup.initialize(setup.key)
        if first_step >= experiment.total_steps:
            console.print(f"{workdir.path}: training is finished at step {first_step}")
            return state
        if first_step:
            console.print(f"{workdir.path}: going on from step {first_step}")
        telemetry = Telemetry(
            workdir.log_file,
            console=console,
            first_step=first_step,
            total_steps=experiment.total_steps,
            steps_per_epoch=experiment.steps_per_epoch,
            views_per_step=(config.data.num_global_views + config.data.num_local_views) * config.data.batch_size,
            every_steps=config.log.every_steps,
        )
        feed = open_feed(config, experiment, setup, console, first_step=first_step)
        # XLA calls LAPACK for the small decompositions of the floors; its threads would spin against XLA's own.
        blas = threadpool_limits(1, user_api="blas")
        with contextlib.closing(feed), telemetry, stop_on_signal() as stop, blas:
            return _loop(config, experiment, setup, state, first_step, feed, checkpointer, telemetry, stop)


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


def _loop(
    config: ConfigDict,
    experiment: Experiment,
    setup: Setup,
    state: TrainState,
    first_step: int,
    feed: Feed,
    checkpointer: Checkpointer,
    telemetry: Telemetry,
    stop: StopRequest,
) -> TrainState:
    train_step = jax.jit(
        make_train_step(loss=setup.loss, optimizer=experiment.optimizer),
        donate_argnums=0,
        out_shardings=(setup.shardings, sharding.replicated(setup.mesh)),
    )
    # Known in advance: asking the schedule in the loop would wait for the step before it on the device.
    learning_rates = np.asarray(jax.vmap(experiment.learning_rate)(np.arange(experiment.total_steps)))
    save = partial(checkpointer.save, config=json.loads(config.to_json()))
    saved_at = time.monotonic()
    pending = None
    try:
        for step in range(first_step, experiment.total_steps):
            step_number = sharding.place(np.asarray(step, np.int32), sharding.replicated(setup.mesh))
            # Not kept in a variable, which would keep the memory that is shared with a worker.
            state, metrics = train_step(state, setup.key, step_number, feed.dataset, next(feed))
            telemetry.waited_for_input(feed.last_wait)
            # Metrics are read one step late, so that the device never waits for the host.
            if pending:
                telemetry.record(*pending)
            pending = (step, metrics, float(learning_rates[step]))
            if stop.signal_number is not None:
                break
            if _is_due(config.checkpoint, step + 1, saved_at):
                # Only a state whose step is known to have been finite is saved as that step.
                telemetry.record(*pending)
                pending = None
                save(step + 1, state)
                saved_at = time.monotonic()
        if pending:
            telemetry.record(*pending)
    except NonFiniteError as error:
        save(error.step, state)
        raise
    except UserError:
        # The data gave out before this step.
        if pending:
            telemetry.record(*pending)
        if step > first_step:
            save(step, state)
        raise
    save(step + 1, state)
    if stop.signal_number is not None:
        raise Interrupted(step + 1, stop.signal_number)
    return state


def _is_due(config: ConfigDict, steps_done: int, saved_at: float) -> bool:
    every_steps, every_minutes = config.every_steps, config.every_minutes
    if every_steps is not None and steps_done % every_steps == 0:
        return True
    return every_minutes is not None and time.monotonic() - saved_at >= 60.0 * every_minutes


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns SIGINT and SIGTERM into a request that the loop sees after its step; a second one acts at once.

    Yields:
        The request, whose `signal_number` is set by the first signal.
    """
    stop = StopRequest()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request_stop(signal_number: int, frame: object) -> None:
        stop.signal_number = signal_number
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, request_stop)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
