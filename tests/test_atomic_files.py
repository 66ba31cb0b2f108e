import errno
import json

import numpy as np
import pytest

from hamjepa_jax.atomic_files import plain, read_json, replacing, write_json, writing
from hamjepa_jax.errors import StorageError


def full_disk():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path):
    path = tmp_path / "new" / "deep" / "numbers.json"
    for value in ({"a": [1, None, 2.5]}, {"b": "ü"}):
        write_json(path, value)
        assert read_json(path) == value
    assert [file.name for file in path.parent.iterdir()] == ["numbers.json"]


def test_what_is_not_finite_becomes_null():
    value = {"a": np.array([1.0, np.inf]), "b": [np.float32(np.nan), 2], "c": None, "d": np.arange(2), "e": "x"}
    expected = '{"a": [1.0, null], "b": [null, 2], "c": null, "d": [0, 1], "e": "x"}'
    assert json.dumps(plain(value), allow_nan=False) == expected
    assert plain({"a": (1234.5678, 12345, "1.23456")}, digits=3) == {"a": [1230.0, 12345, "1.23456"]}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyError("a mistake")])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "picture.png"
    path.write_text("old")

    def fail():
        with replacing(path) as replacement:
            replacement.write_text("ne")
            raise error

    with pytest.raises((StorageError, KeyError)):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "picture.png"
    path.write_text("old")
    (tmp_path / "same_file").hardlink_to(path)
    with replacing(path) as replacement:
        replacement.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    # Not written over, which can be interrupted.
    assert (tmp_path / "same_file").read_text() == "old"


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    for attempt in (writing, replacing):
        with pytest.raises(StorageError) as caught, attempt(tmp_path / "file"):
            full_disk()
        assert str(caught.value) == f"{tmp_path / 'file'}: cannot be written (No space left on device)"


def test_numbers_that_are_not_finite_are_no_json(tmp_path):
    write_json(tmp_path / "file", 1)
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "file", float("nan"))
    assert read_json(tmp_path / "file") == 1


@pytest.mark.parametrize("text", ["", "{", "\udcff"])
def test_a_file_that_is_no_json_holds_nothing(tmp_path, text):
    assert read_json(tmp_path / "none") is None
    (tmp_path / "file").write_text(text, errors="surrogateescape")
    assert read_json(tmp_path / "file") is None
