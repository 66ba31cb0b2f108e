import signal
import subprocess
import sys
from multiprocessing import shared_memory

import numpy as np
import pytest

from hamjepa_jax.data.images import UnreadableImage
from hamjepa_jax.data.loading import CanvasLoader, LabelledCanvasLoader, Unreadable
from hamjepa_jax.data.pipeline import Batches, SkippedRecords, blocks, index_batches, load_into_memory
from hamjepa_jax.data.sources import ArraySource
from hamjepa_jax.errors import UserError


class NumberedSource(ArraySource):
    """Twenty images, each filled with its number; some cannot be read."""

    def __init__(self, broken=()):
        images = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None, None], (20, 4, 4, 3))
        super().__init__(images, np.arange(20, dtype=np.int32) % 4, ("a", "b", "c", "d"))
        self.broken = broken

    def read(self, index, min_shorter_side=None):
        if index in self.broken:
            raise UnreadableImage("truncated")
        return super().read(index)


def none_skipped():
    return SkippedRecords(0, report=print)


def batches(source=None, *, skipped=None, **settings):
    source = source or NumberedSource()
    settings = {"batch_size": 6, "seed": 3, "num_workers": 0} | settings
    return Batches(CanvasLoader(source, canvas_size=4), len(source), skipped or none_skipped(), **settings)


def take(iterator, count):
    """The numbers that the images of the next batches show."""
    shown = [next(iterator).images[:, 0, 0, 0].tolist() for _ in range(count)]
    iterator.close()
    return shown


def test_an_epoch_visits_no_example_twice_and_drops_the_incomplete_batch():
    batches = index_batches(10, batch_size=3, seed=0)
    epoch = np.concatenate([batches[step] for step in range(3)])
    assert len(set(epoch.tolist())) == 9
    assert set(epoch.tolist()) <= set(range(10))
    assert [len(batches[step]) for step in range(7)] == [3] * 7


def test_every_epoch_and_every_seed_has_its_own_order():
    batches = index_batches(100, batch_size=50, seed=0)
    assert not np.array_equal(batches[0], batches[2])
    assert not np.array_equal(batches[0], index_batches(100, batch_size=50, seed=1)[0])


def test_a_batch_depends_on_the_step_alone():
    first, second = (index_batches(20, batch_size=4, seed=3) for _ in range(2))
    walked = [first[step] for step in range(12)]
    np.testing.assert_array_equal(second[11], walked[11])


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(ValueError, match="between 1 and the 5 examples, got 6"):
        index_batches(5, batch_size=6, seed=0)


def test_the_images_of_a_batch_are_those_of_its_indices():
    iterator, order = batches(), index_batches(20, batch_size=6, seed=3)
    assert take(iterator, 7) == [order[step].tolist() for step in range(7)]


def test_the_processes_share_every_batch_without_overlap():
    whole = take(batches(), 5)
    shares = [take(batches(process_index=index, process_count=3), 5) for index in range(3)]
    assert [sum((share[step] for share in shares), []) for step in range(5)] == whole


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_going_on_from_a_saved_state_with_another_number_of_workers(num_workers):
    whole = take(batches(), 8)
    first = batches(num_workers=1)
    assert take(first, 4) == whole[:4]
    state = first.get_state()
    assert state == {"next_step": 4}
    # In the middle of the second epoch, which began with step 3.
    second = batches(num_workers=num_workers)
    second.set_state(state)
    assert take(second, 4) == whole[4:]
    assert second.get_state() == {"next_step": 8}


def test_a_state_can_be_set_while_batches_are_read_ahead():
    iterator = batches()
    next(iterator)
    iterator.set_state({"next_step": 5})
    assert take(iterator, 1) == take(batches(), 6)[5:]


class SignalSource(NumberedSource):
    """Images that show whether the process that reads them would see Ctrl-C."""

    def read(self, index, min_shorter_side=None):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return {"image": np.full((4, 4, 3), int(signal.SIGINT in blocked), np.uint8)}


def test_workers_leave_ctrl_c_to_the_parent():
    assert take(batches(num_workers=1, source=SignalSource()), 1) == [[1] * 6]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_memory_that_a_worker_leaves_behind_is_freed_without_a_warning():
    program = """
from multiprocessing import shared_memory
from hamjepa_jax.data.pipeline import ctrl_c_blocked
with ctrl_c_blocked():
    pass
print(shared_memory.SharedMemory(create=True, size=8).name)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stderr == ""
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(finished.stdout.strip())


def test_unreadable_records_are_reported_once_and_too_many_stop_with_the_name():
    reports = []
    skipped = SkippedRecords(2, reports.append)
    skipped.add([Unreadable("a.jpg", "truncated"), Unreadable("a.jpg", "truncated"), Unreadable("b.jpg", "empty")])
    skipped.add([Unreadable("b.jpg", "empty")])
    assert reports == ["skipped a.jpg: cannot be read (truncated)", "skipped b.jpg: cannot be read (empty)"]
    with pytest.raises(
        UserError, match=r"c.jpg: cannot be read \(bad\); with it there are 3 .*max_corrupt allows 2"
    ) as error:
        skipped.add([Unreadable("c.jpg", "bad")])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_limit_on_unreadable_records_stops_the_iteration(num_workers):
    reports = []
    source = NumberedSource(broken=(4, 11))
    iterator = batches(source, skipped=SkippedRecords(1, reports.append), num_workers=num_workers)
    with pytest.raises(UserError, match="image (4|11): cannot be read"):
        take(iterator, 4)
    iterator.close()
    assert len(reports) == 1
    # Both are allowed here, and each is replaced by its successor.
    shown = take(batches(source, skipped=SkippedRecords(2, reports.append), num_workers=num_workers), 3)
    assert shown == [[number + (number in (4, 11)) for number in batch] for batch in take(batches(), 3)]


def test_when_nothing_can_be_read_training_stops_in_one_line():
    iterator = batches(NumberedSource(broken=range(20)), skipped=SkippedRecords(100, print))
    with pytest.raises(UserError, match="no image can be read from image"):
        next(iterator)
    iterator.close()


def test_blocks_walk_through_the_whole_data_set_in_order():
    source, reports = NumberedSource(broken=(3,)), []
    loader = LabelledCanvasLoader(source, canvas_size=4)
    walked = list(blocks(loader, 20, SkippedRecords(1, reports.append), block_size=8, num_workers=0))
    assert [len(block.labels) for block in walked] == [7, 8, 4]
    shown = np.concatenate([block.images[:, 0, 0, 0] for block in walked])
    np.testing.assert_array_equal(shown, [number for number in range(20) if number != 3])
    assert reports == ["skipped image 3: cannot be read (truncated)"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_set_in_memory_is_the_data_set_without_what_cannot_be_read(num_workers):
    source, counts = NumberedSource(broken=(3, 19)), []
    loaded = load_into_memory(
        source, SkippedRecords(2, print), canvas_size=6, num_workers=num_workers, progress=counts.append
    )
    assert loaded.images.shape == (18, 6, 6, 3)
    assert loaded.class_names == source.class_names
    kept = [number for number in range(20) if number not in (3, 19)]
    np.testing.assert_array_equal(loaded.labels, source.labels[kept])
    for index, number in enumerate(kept):
        np.testing.assert_array_equal(loaded[index]["image"], source.images[number])
    assert counts[-1] == 18


def test_a_data_set_of_which_nothing_can_be_read_is_refused():
    with pytest.raises(UserError, match="none of the 20 images can be read; the first is image 0"):
        load_into_memory(NumberedSource(broken=range(20)), SkippedRecords(20, print), canvas_size=4, num_workers=0)
