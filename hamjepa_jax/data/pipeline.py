"""The host side of the input: which examples make up which batch, and workers that read them ahead (Grain).

What a batch holds is a function of the seed and the step alone. It does not depend on how many processes and workers
share the work, and a run that is continued sees what an uninterrupted one would have seen.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import flags

from hamjepa_jax.data.images import UnreadableImage
from hamjepa_jax.data.loading import LabelledCanvasLoader, Unreadable
from hamjepa_jax.data.sources import ArraySource, Source
from hamjepa_jax.errors import UserError

TRACKER_WARNING = "ignore:resource_tracker:UserWarning"
# So many examples are handed over at once while a data set is read into memory.
BLOCK_SIZE = 256


def index_batches(num_examples: int, *, batch_size: int, seed: int) -> grain.MapDataset:
    """Batches of example indices, shuffled anew in every epoch; incomplete batches are dropped.

    Args:
        num_examples: size of the data set.
        batch_size: examples in a batch, at most `num_examples`.
        seed: seed of the order.

    Returns:
        An endless sequence; item `step` is an int array (batch_size,).

    Raises:
        ValueError: if the batch is larger than the data set.
    """
    if not 0 < batch_size <= num_examples:
        raise ValueError(f"batch_size: must be between 1 and the {num_examples} examples, got {batch_size}")
    return grain.MapDataset.range(num_examples).shuffle(seed=seed).batch(batch_size, drop_remainder=True).repeat()


class SkippedRecords:
    """Counts the records that could not be read, each once, and says stop when there are too many."""

    def __init__(self, max_corrupt: int, report: Callable[[str], None]):
        """Keeps the arguments.

        Args:
            max_corrupt: how many may be skipped.
            report: told of each of them, in one line.
        """
        self._max_corrupt, self._report = max_corrupt, report
        self._names: set[str] = set()

    def add(self, skipped: list[Unreadable]) -> None:
        """Counts records.

        Args:
            skipped: the records.

        Raises:
            UserError: if there are more than allowed; names the last.
        """
        for record in skipped:
            if record.name in self._names:
                continue
            self._names.add(record.name)
            if len(self._names) > self._max_corrupt:
                raise UserError(
                    f"{record.name}: cannot be read ({record.reason}); with it there are {len(self._names)} such "
                    f"images, and config.data.max_corrupt allows {self._max_corrupt}; replace or remove the file, or "
                    "raise --config.data.max_corrupt; `python -m hamjepa_jax.data.prepare --validate` lists all of them"
                )
            self._report(f"skipped {record.name}: cannot be read ({record.reason})")


class Batches:
    """An endless iterator over the batches of one process, read ahead in worker processes or a thread."""

    def __init__(
        self,
        load: Callable[[int, np.ndarray], tuple[Any, list[Unreadable]]],
        num_examples: int,
        skipped: SkippedRecords,
        *,
        batch_size: int,
        seed: int,
        num_workers: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Starts at the first step; nothing is read before the first batch is asked for.

        Args:
            load: reads the examples of a step, such as a `CanvasLoader`.
            num_examples: size of the data set.
            skipped: is told of what could not be read.
            batch_size: examples in a batch, of all processes together.
            seed: seed of the order.
            num_workers: processes that read and decode; 0: a thread of this one.
            process_index: number of this process.
            process_count: number of processes, which share every batch evenly.
        """
        share = batch_size // process_count
        start = process_index * share

        def load_share(step: int, example_ids: np.ndarray) -> tuple[Any, list[Unreadable]]:
            return load(step, example_ids[start : start + share])

        batches = index_batches(num_examples, batch_size=batch_size, seed=seed)
        self._batches = batches.map_with_index(load_share)
        self._skipped, self._num_workers = skipped, num_workers
        self._next_step, self._iterator = 0, None

    def get_state(self) -> dict[str, int]:
        """All that is needed to go on, with any number of workers: {"next_step"}."""
        return {"next_step": self._next_step}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on where `get_state` was asked."""
        self.close()
        self._next_step = state["next_step"]

    def __iter__(self) -> "Batches":
        """Itself."""
        return self

    def __next__(self) -> Any:
        """The batch of the next step.

        Raises:
            UserError: if more records than allowed could not be read.
        """
        if self._iterator is None:
            self._iterator = read_ahead(self._batches, first=self._next_step, num_workers=self._num_workers)
        try:
            batch, skipped = next(self._iterator)
        except UnreadableImage as error:
            raise UserError(f"{error}") from None
        self._skipped.add(skipped)
        self._next_step += 1
        return batch

    def close(self) -> None:
        """Ends the workers."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def read_ahead(dataset: grain.MapDataset, *, first: int, num_workers: int) -> Generator[Any, None, None]:
    """Reads the items of a sequence ahead of their use, in order.

    Args:
        dataset: the sequence.
        first: number of the first item to read.
        num_workers: processes that read; 0: a thread of this one.

    Yields:
        The items; closing the generator ends the workers.
    """
    # Grain asks for its flags; in a program that has none of absl's they have their defaults.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    one_ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    items = dataset.slice(slice(first, len(dataset))).to_iter_dataset(one_ahead)
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        items = items.mp_prefetch(options)
    with contextlib.closing(iter(items)) as iterator:
        with ctrl_c_blocked():
            item = next(iterator)
        yield item
        # Not kept in a variable, which would keep the memory that is shared with a worker.
        del item
        yield from iterator


@contextlib.contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Holds Ctrl-C back; threads and processes that are started meanwhile never see it, and leave it to this one.

    A terminal sends it to every process, and a worker that it kills while starting would be waited for in vain.
    """
    # The tracker frees what a worker shared last and nobody took, when the program ends; it need not warn of that.
    if TRACKER_WARNING not in sys.warnoptions:
        sys.warnoptions.append(TRACKER_WARNING)
    # It lets Ctrl-C through again when it starts, which must be before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def blocks(
    load: Callable[[int, np.ndarray], tuple[Any, list[Unreadable]]],
    end: int,
    skipped: SkippedRecords,
    *,
    block_size: int,
    num_workers: int,
    first: int = 0,
) -> Iterator[Any]:
    """Examples of a data set from one to another, each once, in order.

    Args:
        load: reads a block of examples, such as an `EvaluationLoader`.
        end: number of the example after the last.
        skipped: is told of what could not be read.
        block_size: examples that are read at once; the last block may have fewer.
        num_workers: processes that read and decode; 0: a thread of this one.
        first: number of the first example.

    Yields:
        What was loaded, a block at a time.

    Raises:
        UserError: if more records than allowed could not be read.
    """
    if first >= end:
        return
    dataset = grain.MapDataset.range(first, end).batch(block_size).map_with_index(load)
    with contextlib.closing(read_ahead(dataset, first=0, num_workers=num_workers)) as items:
        for block, block_skipped in items:
            skipped.add(block_skipped)
            yield block


def load_into_memory(
    source: Source,
    skipped: SkippedRecords,
    *,
    canvas_size: int,
    num_workers: int,
    progress: Callable[[int], None] = lambda count: None,
) -> ArraySource:
    """Decodes a whole data set; examples that cannot be read are left out.

    Args:
        source: the images.
        skipped: is told of what could not be read.
        canvas_size: side of the canvas; larger images are shrunk to it.
        num_workers: processes that read and decode; 0: a thread of this one.
        progress: is told after each block how many examples have been read.

    Returns:
        The same examples in memory.

    Raises:
        UserError: if more records than allowed could not be read, or none can.
    """
    loader = LabelledCanvasLoader(source, canvas_size=canvas_size)
    images_NxCxCxc, sizes, labels, filled = None, [], [], 0
    for block in blocks(loader, len(source), skipped, block_size=BLOCK_SIZE, num_workers=num_workers):
        count = len(block.labels)
        if count:
            if images_NxCxCxc is None:
                images_NxCxCxc = np.empty((len(source), *block.images.shape[1:]), np.uint8)
            images_NxCxCxc[filled : filled + count] = block.images
            # What comes from a worker lies in memory that is shared with it.
            sizes.append(block.sizes.copy())
            labels.append(block.labels.copy())
            filled += count
        progress(filled)
    if images_NxCxCxc is None:
        raise UserError(f"none of the {len(source)} images can be read; the first is {source.name_of(0)}")
    return ArraySource(images_NxCxCxc[:filled], np.concatenate(labels), source.class_names, np.concatenate(sizes))
