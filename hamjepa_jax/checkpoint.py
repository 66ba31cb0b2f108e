"""Checkpoints: all that a run needs to go on, as one atomic step, written meanwhile (the only importer of orbax)."""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from hamjepa_jax import distributed
from hamjepa_jax.checksums import CHECKSUMS_FILE, damage_of, write_checksums
from hamjepa_jax.errors import StorageError, UserError, reason_of
from hamjepa_jax.orbax_log import ORBAX_LOG
from hamjepa_jax.version import code_version, program_of
from hamjepa_jax.workdir import flatten

BEST_MODES = {"min": min, "max": max}
# Seconds between two looks at a save that is waited for.
WAIT = 0.002
# The parts of the config on which the shapes and dtypes of the state depend.
SHAPING = ("model.", "predictor.", "optimizer.", "objective.", "data.mean", "data.view_size")
# What reading a checkpoint without checksums may raise if its files are damaged.
READING_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError)


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        step: the number of steps made.
        state: the state, on the devices.
        data: the state of the data iterator.
    """

    step: int
    state: Any
    data: dict[str, Any]


class Checkpointer:
    """Saves and restores training states in a directory: the newest `keep` of them, and the best.

    Every process of a run calls the same methods in the same order, but for `check`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        best_metric: str | None = None,
        best_mode: str = "min",
        read_only: bool = False,
        report: Callable[[str], None] = lambda line: None,
    ):
        """Opens the directory; for writing it is created, and freed of what a killed run left unfinished.

        Args:
            directory: where the checkpoints live.
            keep: how many of the newest are kept.
            best_metric: the metric by which one more is kept, or None.
            best_mode: whether the best has the `min` or the `max` of the metric.
            read_only: whether nothing in the directory may change, because a training may be writing there.
            report: called with a line for every checkpoint that is damaged.

        Raises:
            StorageError: if the directory cannot be created.
        """
        self._directory = directory.absolute()
        self._best_metric, self._best_of = best_metric, BEST_MODES[best_mode]
        self._read_only, self._report = read_only, report
        self._version = code_version()
        self._saving: int | None = None
        self._failure: Exception | None = None
        ORBAX_LOG.failure = None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(keep, self._best_among),
            # With this the directory is neither created nor cleaned up.
            read_only=read_only,
            cleanup_tmp_directories=True,
            single_host_load_and_broadcast=True,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._write_checksums,
                # Else threads wait for minutes for a directory that cannot be created, even when the program ends.
                create_directories_asynchronously=False,
            ),
        )
        handler, registry = ocp.StandardCheckpointHandler(), ocp.handlers.DefaultCheckpointHandlerRegistry()
        for arguments in (ocp.args.StandardSave, ocp.args.StandardRestore):
            registry.add("state", arguments, handler)
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options, handler_registry=registry)
        except OSError as error:
            raise StorageError(f"{directory}: no checkpoints can be written there ({reason_of(error)})") from error
        self._scores = {step: self._read_score(step) for step in self._manager.all_steps()}

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the checkpoint with the best metric, or None if none of them has it."""
        return self._best_among(self._manager.all_steps())

    def save(
        self, step: int, state: Any, *, data: dict[str, Any], config: dict[str, Any], metrics: dict[str, float]
    ) -> None:
        """Starts to save, unless this step is there already; training may go on meanwhile.

        Args:
            step: the number of steps made.
            state: a pytree of arrays, which may be donated to the next step.
            data: the state of the data iterator, as plain JSON values.
            config: the config of the run, as plain JSON values.
            metrics: the metrics of the step; those that are not finite are left out.

        Raises:
            StorageError: if this or the previous checkpoint cannot be written.
        """
        if step in self._manager.all_steps():
            return
        # What fails in the computation of the state must not look like a failure to save it.
        jax.block_until_ready(state)
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            config=ocp.args.JsonSave(config),
            version=ocp.args.JsonSave(self._version),
            measurements=ocp.args.JsonSave(finite),
        )
        self._wait()
        self._saving, self._scores[step] = step, finite.get(self._best_metric)
        with self._storage_errors():
            self._manager.save(step, args=items, force=True)

    def check(self) -> None:
        """Makes sure that no save has failed; takes microseconds.

        Raises:
            StorageError: if one has.
        """
        if self._failure is not None:
            raise self._failure
        # Orbax's own check_for_errors finds nothing: its thread that ends a save has taken the error out before.
        with self._storage_errors():
            if ORBAX_LOG.failure is not None:
                raise ORBAX_LOG.failure
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()

    def restore(
        self, abstract_state: Any, shardings: Any, *, config: dict[str, Any], step: int | None = None
    ) -> Restored | None:
        """Reads the newest intact checkpoint, or the given one, onto the devices, however many there were.

        Damaged ones are reported, and unless the directory is only read they are moved beside it.

        Args:
            abstract_state: shapes and dtypes, from `jax.eval_shape`.
            shardings: the sharding of every array.
            config: the config, as plain JSON values.
            step: a step, or None for the newest.

        Returns:
            The state with the structure of `abstract_state`, or None if there is no such checkpoint.

        Raises:
            StorageError: if the checkpoints may not be read or moved.
            UserError: if no checkpoint can be read, or its arrays are not those of `abstract_state`.
        """
        self._wait()
        # Several processes have agreed on NumPy's integers, which no log can write.
        steps = sorted((int(s) for s in self._manager.all_steps() if step in (None, s)), reverse=True)
        for candidate in steps:
            damage = self._find_damage(candidate)
            if damage is None:
                try:
                    self._require_same_arrays(candidate, abstract_state, config)
                    return self._read(candidate, abstract_state, shardings)
                except READING_ERRORS as error:
                    if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
                        raise StorageError(f"{self._path(candidate)}: may not be read") from error
                    if (self._path(candidate) / CHECKSUMS_FILE).exists():
                        # The files are as they were written, so they are not to blame.
                        raise
                    damage = reason_of(error)
            self._set_aside(candidate, damage)
        if not steps:
            return None
        where = "bring back a copy of one, or train again"
        if not self._read_only:
            where = f"they are now in {self._damaged}, and the same command given again starts from the beginning"
        raise UserError(f"{self._directory}: of {len(steps)} checkpoints none can be read; {where}")

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
            StorageError: if that failed and nothing has said so yet.
        """
        if self._failure is None:
            self._wait()
            with self._storage_errors():
                self._manager.close()
        # After a failure, other processes may never arrive where closing would wait for them.
        elif jax.process_count() == 1:
            with contextlib.suppress(Exception):
                self._manager.close()

    def _wait(self) -> None:
        while self._manager.is_saving_in_progress():
            self.check()
            time.sleep(WAIT)
        self.check()

    @property
    def _damaged(self) -> Path:
        return self._directory.parent / "damaged_checkpoints"

    def _path(self, step: int) -> Path:
        return self._directory / str(step)

    def _read_json(self, step: int, item: str) -> dict[str, Any]:
        return ocp.JsonCheckpointHandler().restore(self._path(step) / item)

    def _read_score(self, step: int) -> float | None:
        # Whether the file is damaged is found out when the checkpoint is restored.
        with contextlib.suppress(OSError, ValueError):
            return self._read_json(step, "measurements").get(self._best_metric)
        return None

    def _best_among(self, steps: Sequence[int]) -> int | None:
        with_score = [step for step in sorted(steps, reverse=True) if self._scores.get(step) is not None]
        return self._best_of(with_score, key=self._scores.get, default=None)

    def _write_checksums(self) -> None:
        """Called in the primary process when all files are written, before the directory gets its final name."""
        [temporary] = self._directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        # Files outside the items are still written to by orbax, and reading does not need them.
        write_checksums(temporary, temporary.glob("*/**/*"))

    def _find_damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint, which only the primary process knows, or None everywhere."""
        try:
            damage = damage_of(self._path(step)) if distributed.is_primary() else ""
        except PermissionError as error:
            raise StorageError(f"{error.filename}: may not be read") from error
        return damage if distributed.agreed(damage is not None) else None

    def _set_aside(self, step: int, damage: str) -> None:
        line = f"{self._directory}: checkpoint {step} is damaged ({damage})"
        if distributed.is_primary() and not self._read_only:
            names = (str(step), *(f"{step}-{number}" for number in range(2, 1000)))
            target = next(self._damaged / name for name in names if not (self._damaged / name).exists())
            try:
                self._damaged.mkdir(exist_ok=True)
                shutil.move(self._path(step), target)
            except OSError as error:
                raise StorageError(f"{line} and cannot be moved to {target} ({reason_of(error)})") from error
            line += f"; moved to {target}"
        if distributed.is_primary():
            self._report(line)
        if not self._read_only:
            self._manager.reload()

    def _require_same_arrays(self, step: int, abstract_state: Any, config: dict[str, Any]) -> None:
        there, now = _describe(self._manager.item_metadata(step).state.tree), _describe(abstract_state)
        differing = [
            f"{name} ({there.get(name, 'missing')} there, {now.get(name, 'missing')} now)"
            for name in sorted(there.keys() | now.keys())
            if there.get(name) != now.get(name)
        ]
        if not differing:
            return
        saved, given = flatten(self._read_json(step, "config")), flatten(config)
        causes = [
            f"config.{key} ({saved.get(key)} there, {given.get(key)} now)"
            for key in sorted(saved.keys() | given.keys())
            if key.startswith(SHAPING) and saved.get(key) != given.get(key)
        ]
        if causes:
            reason = f"because of {', '.join(causes)}; take the config of that run, or another --workdir"
        else:
            version, differs = self._read_json(step, "version"), "the config is the same, but the code may not be"
            reason = f"{differs}: {program_of(version)} wrote it, and this is {program_of(self._version)}"
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{self._directory}: checkpoint {step} has other arrays: {', '.join(differing[:3])}{more}; {reason}"
        )

    def _read(self, step: int, abstract_state: Any, shardings: Any) -> Restored:
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_state,
            shardings,
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return Restored(step, restored.state, restored.data)

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Whatever fails in saving becomes one clear line."""
        try:
            yield
        except Exception as error:
            self._failure = error
            if distributed.lost_process(error):
                raise
            self._failure = StorageError(
                f"checkpoint {self._saving} cannot be written to {self._directory} ({reason_of(error)}); intact there: "
                f"{', '.join(map(str, self._intact_steps())) or 'none'}; free space, or mend what else is wrong, and "
                "give the same command again"
            )
            raise self._failure from error

    def _intact_steps(self) -> list[int]:
        with contextlib.suppress(OSError):
            steps = sorted(int(name) for name in os.listdir(self._directory) if name.isdigit())
            return [step for step in steps if damage_of(self._path(step)) is None]
        return []


class _NewestAndBest:
    """Orbax's question which checkpoints to keep, answered: the newest, and the best of all."""

    def __init__(self, keep: int, best_among: Callable[[Sequence[int]], int | None]):
        self._keep, self._best_among = keep, best_among

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-self._keep :], self._best_among(steps)}
        return [step in kept for step in steps]


def _describe(tree: Any) -> dict[str, str]:
    """The shape and dtype of every array, by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{tuple(leaf.shape)} {leaf.dtype}"
        for path, leaf in leaves
    }
