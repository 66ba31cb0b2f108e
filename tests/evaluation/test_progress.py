import errno

import numpy as np
import pytest

from hamjepa_jax.errors import StorageError
from hamjepa_jax.evaluation.progress import Progress

OF = {"step": 3, "model": {"widths": (1, 2)}}


def block(start, count):
    numbers = np.arange(start, start + count)
    return {"x": np.stack([numbers, -numbers], axis=1).astype(np.float32), "labels": numbers.astype(np.int32)}


def rows_with(directory, *counts):
    rows = Progress(directory, OF).rows("train")
    for start, count in zip(np.cumsum((0, *counts)), counts, strict=False):
        rows.append(block(start, count))
    return rows


def test_rows_are_there_again_in_another_process(tmp_path):
    rows_with(tmp_path, 3, 2)
    again = Progress(tmp_path, OF).rows("train")
    assert again.num_blocks == 2
    again.append(block(5, 1))
    for name, expected in block(0, 6).items():
        np.testing.assert_array_equal(Progress(tmp_path, OF).rows("train").arrays()[name], expected)


def test_a_block_that_was_cut_short_does_not_count(tmp_path):
    rows_with(tmp_path, 3)
    # The process was killed while it wrote the second block: one array is longer, another is not.
    with (tmp_path / "train" / "x.bin").open("ab") as file:
        file.write(bytes(101))
    rows = Progress(tmp_path, OF).rows("train")
    assert rows.num_blocks == 1
    rows.append(block(3, 2))
    np.testing.assert_array_equal(rows.arrays()["x"], block(0, 5)["x"])
    assert (tmp_path / "train" / "x.bin").stat().st_size == 5 * 2 * 4


@pytest.mark.parametrize("damage", ["shortened", "missing"])
def test_what_a_machine_lost_is_done_again(tmp_path, damage):
    rows_with(tmp_path, 3)
    file = tmp_path / "train" / "labels.bin"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    rows = Progress(tmp_path, OF).rows("train")
    assert rows.num_blocks == 0
    rows.append(block(0, 2))
    np.testing.assert_array_equal(rows.arrays()["labels"], [0, 1])


def test_a_block_without_rows_counts_as_a_block(tmp_path):
    rows = rows_with(tmp_path, 2)
    rows.append({})
    rows.append(block(2, 1))
    assert rows.num_blocks == 3
    np.testing.assert_array_equal(rows.arrays()["labels"], [0, 1, 2])


def test_a_result_is_computed_once(tmp_path):
    computed = []

    def compute():
        computed.append(1)
        return {"top1": [0.5, 1.0]}

    first, again = (Progress(tmp_path, OF).result("knn", compute) for _ in range(2))
    assert first == again == {"top1": [0.5, 1.0]}
    assert len(computed) == 1


def test_another_evaluation_begins_anew(tmp_path):
    rows_with(tmp_path, 3)
    Progress(tmp_path, OF).result("knn", lambda: 1)
    other = Progress(tmp_path, OF | {"step": 4})
    assert other.rows("train").num_blocks == 0
    assert other.result("knn", lambda: 2) == 2


def test_a_process_that_does_not_write_results_removes_nothing(tmp_path):
    Progress(tmp_path, OF).result("knn", lambda: 1)
    reader = Progress(tmp_path, OF | {"step": 4}, writes_results=False)
    assert reader.result("other", lambda: 2) == 2
    assert Progress(tmp_path, OF).result("knn", lambda: 3) == 1
    assert Progress(tmp_path, OF).result("other", lambda: 3) == 3


def test_in_the_end_nothing_is_left(tmp_path):
    progress = Progress(tmp_path / "unfinished", OF)
    progress.rows("train").append(block(0, 1))
    progress.remove()
    assert not (tmp_path / "unfinished").exists()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    rows = rows_with(tmp_path, 1)

    def full(self, *arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(StorageError) as error:
        rows.append(block(1, 1))
    assert str(error.value) == f"{tmp_path / 'train'}: cannot be written (No space left on device)"
    assert rows.num_blocks == 1
