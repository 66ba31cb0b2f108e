import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hamjepa_jax import command_line as command
from hamjepa_jax.benchmarks import input as benchmark
from hamjepa_jax.data.images import decode

CONFIG = Path(__file__).parents[2] / "configs" / "cifar100.py"
FIELDS = {
    "images",
    "task",
    "bytes_per_image",
    "seconds_per_image",
    "best_seconds_per_image",
    "floor_seconds_per_image",
    "ratio_to_floor",
}


@pytest.fixture(scope="module")
def files():
    """A few photographs as JPEG files."""
    return benchmark.jpegs(4)


def test_the_photographs_are_jpegs_of_the_usual_size_and_differ(files):
    assert all(decode(file).shape == (375, 500, 3) for file in files)
    assert len(set(files)) == 4
    assert all(20_000 < len(file) < 200_000 for file in files)


def test_every_task_on_photographs_is_measured():
    rows = benchmark.decode_photographs(count=2, repeats=1)
    assert [row["task"] for row in rows] == ["decode", "decode, 2 crops of 224", "decode, canvas of 256"]
    for row in rows:
        assert row.keys() == FIELDS
        assert row["images"] == "JPEG 500×375"
        assert row["ratio_to_floor"] == pytest.approx(row["seconds_per_image"] / row["floor_seconds_per_image"])


def test_every_task_on_a_data_set_is_measured(files):
    rows = benchmark.decode_data_set("mine", benchmark.MemorySource(files), count=3, repeats=2)
    assert [row["task"] for row in rows] == ["decode", "read, decode", "read, decode, canvas of 32"]
    for row in rows:
        assert row.keys() == FIELDS
        assert min(map(len, files)) < row["bytes_per_image"] < max(map(len, files))
        assert row["best_seconds_per_image"] <= row["seconds_per_image"]


@pytest.mark.parametrize("feed", benchmark.FEEDS)
def test_training_is_asked_for_with_fields_that_exist(feed, tmp_path):
    arguments = benchmark.training_command("cifar100", tmp_path, feed, tmp_path / "run")[3:]
    config = command.load_config(str(CONFIG))
    for argument in arguments:
        if argument.startswith("--config."):
            command.check_key(config, argument.removeprefix("--config.").partition("=")[0])
    assert config.data.num_global_views + config.data.num_local_views == benchmark.VIEWS
    assert config.data.canvas_size == benchmark.CANVAS
    assert ("--config.data.resident_bytes=0" in arguments) == feed.startswith("streamed")
    assert f"--config.data.num_workers={int('one worker' in feed)}" in arguments


def train_instead(returncode):
    """Stands in for a training run, which writes its log or fails."""

    def run(arguments, **options):
        (workdir,) = (Path(a.removeprefix("--workdir=")) for a in arguments if a.startswith("--workdir="))
        workdir.mkdir()
        records = [
            {"step": 4, "views_per_second": 10.0, "input_wait": 0.5},
            {"step": 11, "views_per_second": 32.0, "input_wait": 0.01},
        ]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return SimpleNamespace(returncode=returncode, stderr="error: no such data\n")

    return run


def test_the_wait_is_that_of_the_last_record(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark.subprocess, "run", train_instead(0))
    assert benchmark.measure_waiting("cifar100", tmp_path, "streamed, one worker", tmp_path / "run") == {
        "feed": "streamed, one worker",
        "num_workers": 1,
        "batch_size": 32,
        "seconds_per_step": 2.0,
        "input_wait": 0.01,
    }


def test_a_run_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark.subprocess, "run", train_instead(2))
    with pytest.raises(RuntimeError, match="on the device: exit status 2: error: no such data"):
        benchmark.measure_waiting("cifar100", tmp_path, "on the device", tmp_path / "run")


def test_the_tables_have_a_row_for_every_measurement():
    decoded = {
        "images": "mine",
        "task": "decode",
        "bytes_per_image": 1769,
        "seconds_per_image": 500e-6,
        "best_seconds_per_image": 480e-6,
        "floor_seconds_per_image": 400e-6,
        "ratio_to_floor": 1.25,
    }
    header, rule, row = benchmark.decoding_table([decoded]).splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row == "| mine | 1,769 | decode | 2,000 | 500.0 (480.0) | 400.0 | 1.25 |"

    waited = {"feed": "on the device", "num_workers": 0, "batch_size": 32, "seconds_per_step": 2.0, "input_wait": 0.01}
    header, rule, row = benchmark.waiting_table([waited]).splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row == "| on the device | 2.000 | 20.0 | 1.00% |"


@pytest.fixture
def quick(monkeypatch):
    """Makes the script quick."""
    for name in ("REPEATS", "NUM_PHOTOS", "NUM_EXAMPLES"):
        monkeypatch.setattr(benchmark, name, 1)
    monkeypatch.setattr(benchmark.subprocess, "run", train_instead(0))


def test_without_a_data_set_only_photographs_are_decoded(tmp_path, monkeypatch, capsys, quick):
    monkeypatch.setattr(sys, "argv", ["input", f"--json={tmp_path}/results/input.json"])
    benchmark.main()
    written = json.loads((tmp_path / "results" / "input.json").read_text())
    assert {row["images"] for row in written["decoding"]} == {"JPEG 500×375"}
    assert written["waiting"] == []
    assert written["environment"]["cores"] >= 1
    assert capsys.readouterr().out.strip() == benchmark.decoding_table(written["decoding"])


def test_with_a_data_set_everything_is_measured(tmp_path, monkeypatch, capsys, quick, files):
    for split in ("train", "test"):
        folder = tmp_path / "data" / split / "only"
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_bytes(files[0])
    written_to = tmp_path / "input.json"
    monkeypatch.setattr(sys, "argv", ["input", f"--data_dir={tmp_path}/data", "--name=mine", f"--json={written_to}"])
    benchmark.main()
    written = json.loads(written_to.read_text())
    assert [row["images"] for row in written["decoding"]] == 3 * ["mine"] + 3 * ["JPEG 500×375"]
    assert [row["feed"] for row in written["waiting"]] == list(benchmark.FEEDS)
    assert benchmark.waiting_table(written["waiting"]) in capsys.readouterr().out


@pytest.mark.parametrize(("name", "problem"), [("cifar100", "does not exist"), ("digits", "nothing is left to decode")])
def test_data_that_cannot_be_measured_is_refused(name, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["input", f"--data_dir={tmp_path}/absent", f"--name={name}"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert problem in capsys.readouterr().err
