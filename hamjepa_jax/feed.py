"""From the host to the devices: the data set once where it fits, and otherwise batch after batch."""

import time
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hamjepa_jax import sharding
from hamjepa_jax.build_views import Dataset
from hamjepa_jax.data.pipeline import Batches, index_batches
from hamjepa_jax.data.sources import ArraySource


class Feed:
    """The batches of a run on the devices, in the order of the steps; an iterator.

    Attributes:
        dataset: the images, on every device, or None if the batches hold them.
        last_wait: how long the last batch let the loop wait, seconds.
    """

    def __init__(
        self,
        batches: Generator[Any, None, None] | Batches,
        mesh: Mesh,
        *,
        place: Callable[[Any, Any], Any],
        dataset: Dataset | None = None,
    ):
        """Keeps the arguments; `resident` and `streamed` choose them.

        Args:
            batches: the batches on the host.
            mesh: the device mesh.
            place: brings one to the devices, see `sharding.place` and `sharding.place_shares`.
            dataset: the images, if they lie on the devices.
        """
        self._batches, self._mesh, self._place = batches, mesh, place
        self.dataset, self.last_wait = dataset, 0.0

    @classmethod
    def resident(cls, source: ArraySource, mesh: Mesh, *, batch_size: int, seed: int, first_step: int) -> "Feed":
        """Copies a data set to every device; the batches are the numbers of their examples.

        Args:
            source: the images.
            mesh: the device mesh.
            batch_size: examples in a batch.
            seed: seed of the order.
            first_step: the step whose batch comes first.

        Returns:
            The feed.
        """
        order = index_batches(len(source), batch_size=batch_size, seed=seed)
        batches = (np.asarray(order[step], np.int32) for step in range(first_step, len(order)))
        dataset = sharding.place(whole(source), sharding.replicated(mesh))
        return cls(batches, mesh, place=sharding.place, dataset=dataset)

    @classmethod
    def streamed(cls, batches: Batches, mesh: Mesh, *, first_step: int) -> "Feed":
        """Sends every batch when its turn comes.

        Args:
            batches: this process's shares of the batches.
            mesh: the device mesh.
            first_step: the step whose batch comes first.

        Returns:
            The feed.
        """
        batches.set_state({"next_step": first_step})
        return cls(batches, mesh, place=sharding.place_shares)

    def __iter__(self) -> "Feed":
        """Itself."""
        return self

    def __next__(self) -> Any:
        """The batch of the next step, see `build_views.make_views`.

        Raises:
            UserError: if more records than allowed could not be read.
        """
        asked_at = time.monotonic()
        batch = self._place(next(self._batches), sharding.batch_sharding(self._mesh))
        self.last_wait = time.monotonic() - asked_at
        return batch

    def take(self, count: int) -> Any:
        """The batches of the next steps, with a leading axis of steps.

        Args:
            count: how many.

        Returns:
            The batches.

        Raises:
            UserError: if more records than allowed could not be read.
        """
        asked_at = time.monotonic()
        batches = [next(self._batches) for _ in range(count)]
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
        placed = self._place(stacked, sharding.batch_sharding(self._mesh, leading_axes=1))
        self.last_wait = time.monotonic() - asked_at
        return placed

    def close(self) -> None:
        """Ends the workers."""
        self._batches.close()


def whole(source: ArraySource) -> Dataset:
    """A data set in memory, ready to be placed on the devices.

    Args:
        source: the images.

    Returns:
        Images and sizes, on the host.
    """
    if source.sizes is not None:
        return Dataset(source.images, source.sizes)
    return Dataset(source.images, np.tile(np.array(source.images.shape[1:3], np.int32), (len(source), 1)))
