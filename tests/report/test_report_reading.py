"""What is read of runs, how they are told apart, and how what cannot be read is reported."""

import json

import numpy as np
import pytest

from hamjepa_jax.errors import UserError
from hamjepa_jax.report.reading import at, differences, numbers, read_runs


def test_a_whole_run_is_read(make_run):
    (run,) = read_runs([make_run(num_records=7)])
    assert (run.label, run.seed, run.headline, len(run.log)) == ("hamjepa", 0, "q", 7)
    assert run.diagnostics["state_dim"] == 32
    assert run.pictures["map_pca"].shape == (60, 2)
    assert run.views.name == "views.png"


def test_what_is_missing_is_empty(make_run):
    files = ("metrics.jsonl", "evaluation/metrics.json", "evaluation/diagnostics.json", "evaluation/pictures.npz")
    (run,) = read_runs([make_run(without=(*files, "views.png"))])
    assert (run.log, run.metrics, run.diagnostics, run.pictures) == ([], {}, {}, {})
    assert run.views is None
    assert run.headline is None


def test_differences_are_exactly_the_keys_that_differ(make_run):
    first = make_run("a", variant="hamjepa", config={"deep": {"same": [1, 2], "other": {"x": 1}, "only": None}})
    second = make_run("b", variant="hamjepa", config={"deep": {"same": [1, 2], "other": {"x": True}}})
    found = differences(read_runs([first, second]))
    # None is what a run has that does not have the key.
    assert found == {"deep.other.x": [1, True]}


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        ([("a", "hamjepa", 0), ("b", "sigreg", 0)], ["hamjepa", "sigreg"]),
        ([("a", "hamjepa", 0), ("b", "hamjepa", 1)], ["hamjepa, seed 0", "hamjepa, seed 1"]),
        ([("a", "hamjepa", 0), ("b", "hamjepa", 0)], ["hamjepa (a)", "hamjepa (b)"]),
        ([("x/a", "hamjepa", 0), ("y/a", "hamjepa", 0)], ["hamjepa (a) 1", "hamjepa (a) 2"]),
    ],
)
def test_labels_tell_runs_apart(make_run, runs, labels):
    directories = [make_run(name, variant=variant, seed=seed) for name, variant, seed in runs]
    assert [run.label for run in read_runs(directories)] == labels


def test_half_a_line_of_a_run_that_goes_on_is_left_out(make_run):
    directory = make_run(num_records=3)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    (run,) = read_runs([directory])
    assert [record["step"] for record in run.log] == [0, 1, 2]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "{", "cannot be read"),
        ("config.json", "[1]", "must be a JSON object, got a list"),
        ("evaluation/metrics.json", "nonsense", "cannot be read"),
        ("evaluation/metrics.json", b"\xff\xfe\x00", "cannot be read"),
        ("evaluation/diagnostics.json", "3", "must be a JSON object, got a int"),
        ("metrics.jsonl", '{"step": 0}\n{broken}\n', "line 2 is not a record with a step"),
        ("metrics.jsonl", '{"loss": 0}\n', "line 1 is not a record with a step"),
        ("metrics.jsonl", "[1]\n", "line 1 is not a record with a step"),
        ("evaluation/pictures.npz", "no archive", "cannot be read"),
        ("evaluation/pictures.npz", b"PK\x03\x04 cut off", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(make_run, file, content, said):
    directory = make_run()
    (directory / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_runs([directory])
    assert str(directory / file) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickles_are_refused(make_run):
    directory = make_run()
    np.savez(directory / "evaluation" / "pictures.npz", query_images=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="pictures.npz: cannot be read"):
        read_runs([directory])


def test_a_directory_without_a_run_is_named(make_run, tmp_path):
    with pytest.raises(UserError, match="absent: there is no such directory"):
        read_runs([make_run(), tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no run here"):
        read_runs([tmp_path / "empty"])


def test_numbers_that_are_not_finite_are_gaps():
    found = numbers(json.loads('[1, "nan", "inf", null, NaN, "text", 2.5]'))
    np.testing.assert_array_equal(found, [1, np.nan, np.nan, np.nan, np.nan, np.nan, 2.5])
    assert numbers(None).shape == (0,)
    assert numbers([[1, 2], [3, None]]).shape == (2, 2)


def test_a_path_through_what_is_missing_ends_at_none():
    assert at({"a": {"b": 1}}, "a", "b") == 1
    assert at({"a": None}, "a", "b") is None
    assert at({"a": [1]}, "a", "b") is None
