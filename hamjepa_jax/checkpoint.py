"""Checkpoints: the training state and the config as one atomic, asynchronous step (the only importer of orbax)."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging


class Checkpointer:
    """Saves and restores training states in a directory, the newest `keep` of them."""

    def __init__(self, directory: Path, *, keep: int):
        """Opens the directory, which is created if there is none.

        Args:
            directory: where the checkpoints live.
            keep: how many of the newest are kept.
        """
        absl_logging.get_absl_logger().setLevel("WARNING")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep), cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, config: dict[str, Any]) -> None:
        """Starts to save a state, unless this step is there already; training may go on meanwhile.

        Args:
            step: the number of updates made.
            state: a pytree of arrays.
            config: the config of the run, as plain JSON values.
        """
        if step == self.newest_step():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config))
        self._manager.save(step, args=items, force=True)

    def restore(self, step: int, abstract_state: Any, shardings: Any) -> Any:
        """Reads a state onto the devices.

        Args:
            step: a step that was saved.
            abstract_state: shapes and dtypes, from `jax.eval_shape`.
            shardings: the sharding of every array.

        Returns:
            The state, with the structure of `abstract_state`.
        """
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_state,
            shardings,
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=items).state

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()
