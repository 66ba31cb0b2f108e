"""The steps of a run: what is logged and saved on the way, and how they end."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hamjepa_jax import distributed, sharding
from hamjepa_jax.checkpoint import Checkpointer, Restored
from hamjepa_jax.errors import Interrupted, NonFiniteError, UserError, require_known
from hamjepa_jax.evaluation.online_probe import OnlineProbe
from hamjepa_jax.feed import Feed
from hamjepa_jax.profiling import StepTrace
from hamjepa_jax.state import TrainState
from hamjepa_jax.stopping import StopRequest
from hamjepa_jax.telemetry import Telemetry

# What a process asks of all of them in a step; anything greater is the signal that asks them to stop.
NOTHING, SAVE = 0, 1


class Loop:
    """Makes the steps of a run from where it was to the last.

    All processes of a run must save and stop at the same step. What each of them asks for therefore travels with its
    share of the batch, and what any of them asked for comes back with the metrics, one step late like these.
    """

    def __init__(
        self,
        train_step: Callable[..., Any],
        train_steps: Callable[..., Any],
        key: jax.Array,
        mesh: Mesh,
        restored: Restored,
        *,
        feed: Feed,
        checkpointer: Checkpointer,
        telemetry: Telemetry,
        trace: StepTrace,
        stop: StopRequest,
        total_steps: int,
        steps_per_dispatch: int,
        every_steps: int | None,
        every_minutes: float | None,
        best_metric: str | None,
        config: dict[str, Any],
        probe: OnlineProbe | None = None,
    ):
        """Keeps the arguments.

        Args:
            train_step: jitted, (state, key, step, requests, dataset, batch) → (state, metrics, greatest request).
            train_steps: the same for several steps, batches and metrics having a leading axis of steps.
            key: the key of the run, on every device.
            mesh: the device mesh.
            restored: the state to begin with, its step, and that of the data.
            feed: the batches, the first of them that of this step.
            checkpointer: where states are saved.
            telemetry: where metrics are recorded.
            trace: traces some of the steps.
            stop: the request to stop.
            total_steps: steps of the whole run.
            steps_per_dispatch: how many steps `train_steps` makes, unless something is to be done between them.
            every_steps: steps between two checkpoints, or None.
            every_minutes: minutes between two checkpoints, or None.
            best_metric: the metric by which a checkpoint is the best, or None.
            config: the config, to be saved too, as plain JSON values.
            probe: judges the encoder from time to time, or None.
        """
        self._train_step, self._train_steps, self._key, self._mesh = train_step, train_steps, key, mesh
        self._state, self._first_step, self._data_state = restored.state, restored.step, restored.data
        self._feed, self._checkpointer, self._telemetry = feed, checkpointer, telemetry
        self._trace, self._stop = trace, stop
        self._steps_per_dispatch = steps_per_dispatch
        self._total_steps, self._every_steps, self._every_minutes = total_steps, every_steps, every_minutes
        self._best_metric, self._config, self._probe = best_metric, config, probe
        self._saved_at = time.monotonic()
        # The steps that are dispatched and not recorded yet: the number of the first, the metrics of all, what the
        # probe found after the last, and what was asked in them.
        self._pending: tuple[int, dict[str, jax.Array], dict[str, float], jax.Array] | None = None
        self._values: dict[str, float] = {}
        self._asked_by_any = NOTHING

    def run(self) -> TrainState:
        """Makes the steps and saves the last state.

        Returns:
            The last state.

        Raises:
            Interrupted: if any process was asked to stop, after saving.
            NonFiniteError: if the run has halted, after saving the last good state.
            StorageError: if a checkpoint or the log cannot be written.
            UserError: if too many records cannot be read, after saving, or the metric for the best is unknown.
        """
        try:
            step = self._first_step
            while step < self._total_steps:
                self._checkpointer.check()
                request = self._request()
                asked = request if jax.process_count() == 1 else self._asked_by_any
                if asked > SAVE:
                    self._stop.stop(asked, "another process")
                    self._save(step)
                    raise Interrupted(step, asked, self._stop.reason)
                if asked == SAVE or self._save_is_due(step):
                    self._save(step)
                step += self._dispatch(step, request)
            self._trace.end(self._state)
            self._save(self._total_steps)
        except NonFiniteError as error:
            self._pending = None
            self._save(error.step)
            raise
        except UserError:
            # The data gave out before this step. Other processes know nothing of it, and a save needs them all.
            if jax.process_count() == 1:
                self._save(step)
            raise
        return self._state

    def _request(self) -> int:
        """What this process asks of all of them."""
        if self._stop.signal_number is not None:
            return self._stop.signal_number
        minutes = self._every_minutes
        if minutes is None or not distributed.is_primary() or time.monotonic() - self._saved_at < 60.0 * minutes:
            return NOTHING
        self._saved_at = time.monotonic()
        return SAVE

    def _save_is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        if self._every_steps is not None and step % self._every_steps == 0:
            return True
        # The best by the online probe must be the very state that it judged.
        return self._probe is not None and self._best_metric in self._probe.names and self._probe.due(step)

    def _steps_at_once(self, step: int) -> int:
        """How many steps are dispatched together: one where the state is to be saved or judged before the last."""
        count = self._steps_per_dispatch
        between = range(step + 1, step + count)
        if step + count > self._total_steps or any(map(self._save_is_due, between)):
            return 1
        return 1 if self._probe is not None and any(map(self._probe.due, between)) else count

    def _dispatch(self, step: int, request: int) -> int:
        """Starts steps, and then records those before, so that the device never waits for the host; returns how many.

        What a process asks for it asks once for all of them.
        """
        count = self._steps_at_once(step)
        begun_at = time.monotonic()
        self._trace.before(range(step, step + count), self._state)
        self._telemetry.paused(time.monotonic() - begun_at)
        step_number = sharding.place(np.asarray(step, np.int32), sharding.replicated(self._mesh))
        requests = np.full(len(self._mesh.local_devices), request, np.int32)
        # The batch is not kept in a variable, which would keep the memory that is shared with a worker.
        self._state, metrics, asked = (self._train_step if count == 1 else self._train_steps)(
            self._state,
            self._key,
            step_number,
            sharding.place_shares(requests, sharding.batch_sharding(self._mesh)),
            self._feed.dataset,
            next(self._feed) if count == 1 else self._feed.take(count),
        )
        self._telemetry.waited_for_input(self._feed.last_wait)
        self._record()
        self._pending = (step, metrics, self._probe_results(step + count), asked)
        return count

    def _probe_results(self, step: int) -> dict[str, float]:
        """What the online probe finds after so many steps, if it is due; its time does not count as training."""
        if self._probe is None or not self._probe.due(step):
            return {}
        jax.block_until_ready(self._state)
        begun_at = time.monotonic()
        results = self._probe(self._state)
        self._telemetry.paused(time.monotonic() - begun_at)
        return results

    def _record(self) -> None:
        """Records the steps that are pending, if there are any; raises if the run has halted in one of them."""
        if self._pending is None:
            return
        (first_step, metrics, probed, asked), self._pending = self._pending, None
        stacked = {name: np.atleast_1d(values) for name, values in jax.device_get(metrics).items()}
        last = len(stacked["loss"]) - 1
        for i in range(last + 1):
            of_step = {name: values[i] for name, values in stacked.items()} | (probed if i == last else {})
            self._values = self._telemetry.record(first_step + i, of_step)
        self._asked_by_any = int(asked)
        if self._best_metric is not None:
            of_probe = () if self._probe is None else self._probe.names
            require_known(self._best_metric, {*self._values, *of_probe}, "checkpoint.best_metric")

    def _save(self, step: int) -> None:
        """Saves the state after `step` steps, once the last of them is known to have been finite."""
        self._record()
        if step > self._first_step:
            data = self._data_state | {"next_step": step}
            self._checkpointer.save(step, self._state, data=data, config=self._config, metrics=self._values)
        self._saved_at = time.monotonic()
