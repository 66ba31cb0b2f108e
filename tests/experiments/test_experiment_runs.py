import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from hamjepa_jax.experiments import __main__ as command_line
from hamjepa_jax.experiments.grids import GRIDS, Cell, Grid
from hamjepa_jax.experiments.runs import runs_of


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def tried(out):
    """The runs in the order in which they were started, each as often as it was."""
    starts = []
    for file in out.glob("*/*/tried"):
        starts += [(float(line.split()[0]), file.parent.parent.name, file.parent.name) for line in file.open()]
    return [f"{label} {seed}" for _, label, seed in sorted(starts)]


def test_runs_are_made_seed_by_seed_and_those_that_are_done_are_skipped(stand_in, out, capsys):
    assert stand_in("good", "better", arguments=["--seeds=1"]) == 0
    assert tried(out) == ["good seed0", "better seed0"]
    assert stand_in("good", "better", arguments=["--seeds=2"]) == 0
    assert tried(out) == ["good seed0", "better seed0", "good seed1", "better seed1"]
    assert stand_in("good", "better", arguments=["--seeds=2"]) == 0
    assert "all 4 runs are done" in capsys.readouterr().out
    assert len(tried(out)) == 4


def test_every_run_is_a_command_of_main_with_the_overrides_before_its_own(stand_in, out):
    stand_in("good", arguments=["--seeds=1", "--config.train.epochs=7", "--noconfig.model.remat"])
    recorded = json.loads((out / "good" / "seed0.json").read_text())
    assert recorded[0].endswith("config.py:good")
    assert recorded[1:] == [
        "--config.train.epochs=7",
        "--noconfig.model.remat",
        "--config.train.seed=0",
        f"--workdir={out}/good/seed0",
    ]


def test_what_a_row_sets_wins_over_what_is_set_for_all(tmp_path):
    grid = Grid((Cell("row", "hamjepa", {"predictor.num_steps": 8}),), "row")
    for_all = ["--config.predictor.num_steps=1", "--config.train.epochs=7"]
    (run,) = runs_of(grid, config="digits.py", seeds=1, output=tmp_path, overrides=for_all)
    # Of a flag that is given twice, the last one counts.
    assert run.arguments[:4] == ("--config=digits.py:hamjepa", *for_all, "--config.predictor.num_steps=8")


def test_a_run_does_not_hear_ctrl_c_from_the_terminal_besides(stand_in, out):
    stand_in("good", arguments=["--seeds=1"])
    assert (out / "good" / "seed0" / "leads_a_session").read_text() == "True"


def test_runs_share_a_compilation_cache(stand_in, out, monkeypatch):
    stand_in("good", arguments=["--seeds=1"])
    assert (out / "good" / "seed0.log").read_text() == f"cache {out}/compilation_cache\n"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    stand_in("better", arguments=["--seeds=1"])
    assert (out / "better" / "seed0.log").read_text() == "cache elsewhere\n"


def test_another_command_in_the_same_place_is_refused_before_anything_is_run(stand_in, out, capsys):
    stand_in("good", arguments=["--seeds=1"])
    assert stand_in("good", "better", arguments=["--seeds=1", "--config.train.epochs=7"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: --output: good, seed 0 was begun with another command: --config.train.epochs=7")
    assert tried(out) == ["good seed0"]


def test_a_run_that_fails_does_not_keep_the_others_from_being_made(stand_in, out, capsys):
    assert stand_in("broken", "good", arguments=["--seeds=2"], reference="good") == 1
    assert tried(out) == ["broken seed0", "good seed0", "broken seed1", "good seed1"]
    said = capsys.readouterr().out
    assert f"failed: broken, seed 1: exit code 1: something broke (all of it: {out}/broken/seed1.log)" in said
    assert "missing: 2 runs" in said
    assert "Missing: 2 runs: broken, seed 0; broken, seed 1." in (out / "table.md").read_text()


def test_what_is_refused_for_one_seed_is_not_tried_for_the_others(stand_in, out, capsys):
    assert stand_in("refused", "good", arguments=["--seeds=3"], reference="good") == 1
    assert tried(out).count("refused seed0") == 1
    assert len(tried(out)) == 4
    said = capsys.readouterr().out
    assert "failed: refused, seed 0: exit code 2: error: config.data: refused" in said
    assert "failed: refused, seed 2: not made: not tried, because its first seed was refused" in said


def test_runs_at_once_have_their_shares_of_the_cores(stand_in, out):
    cores = sorted(os.sched_getaffinity(0))
    assert stand_in("good", "better", arguments=["--seeds=1", "--at_once=2"]) == 0
    shares = [(out / label / "seed0" / "tried").read_text().split(maxsplit=1)[1] for label in ("good", "better")]
    assert shares == [f"{cores[i::2] or cores}\n" for i in range(2)]
    assert sorted(os.sched_getaffinity(0)) == cores


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_runs_save_and_the_same_command_goes_on(stand_in, out, capsys, number):
    def stop():
        while not (out / "waiting" / "seed0" / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    stopper = threading.Thread(target=stop)
    stopper.start()
    exit_code = stand_in("waiting", "good", arguments=["--seeds=1"])
    stopper.join()
    assert exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert (out / "waiting" / "seed0" / "saved").exists()
    assert "to go on, give the same command again: python -m hamjepa_jax.experiments --grid" in capsys.readouterr().err
    assert tried(out) == ["waiting seed0"]
    assert stand_in("waiting", "good", arguments=["--seeds=1"]) == 0
    assert tried(out) == ["waiting seed0", "waiting seed0", "good seed0"]


def test_one_task_of_an_array_job_makes_one_run_and_collects_nothing(stand_in, out, capsys):
    assert stand_in("good", "better", arguments=["--seeds=2", "--task=3"]) == 0
    assert tried(out) == ["better seed1"]
    assert not (out / "table.md").exists()
    assert stand_in("good", "better", arguments=["--seeds=2", "--task=4"]) == 2
    assert "--task=4: must be below the 4 runs of the grid" in capsys.readouterr().err


def test_the_list_has_the_commands_and_runs_nothing(stand_in, out, capsys):
    assert stand_in("good", "better", arguments=["--seeds=1", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"]
    assert "config.py:better --config.train.seed=0 --workdir=" in lines[1]
    assert not out.exists()
    stand_in("good", arguments=["--seeds=1"])
    capsys.readouterr()
    stand_in("good", "better", arguments=["--seeds=1", "--list"])
    assert [line.split()[1] == "done" for line in capsys.readouterr().out.splitlines()] == [True, False]


def test_what_is_done_can_be_collected_at_any_time(stand_in, out, capsys):
    assert stand_in("good", "better", arguments=["--collect"]) == 0
    assert "no run is done" in capsys.readouterr().out
    stand_in("good", "better", arguments=["--task=0"])
    assert stand_in("good", "better", arguments=["--collect"]) == 0
    assert tried(out) == ["good seed0"]
    assert "Missing: 5 runs: better, seed 0; good, seed 1" in (out / "table.md").read_text()


def test_records_of_a_grid_outlive_its_runs(stand_in, out, tmp_path):
    kept = tmp_path / "kept"
    assert stand_in("good", "better", arguments=["--seeds=1", f"--results={kept}"]) == 0
    table = (kept / "table.md").read_text()
    assert not (out / "table.md").exists()
    assert json.loads((kept / "better_seed0.json").read_text())["row"] == "better"
    shutil.rmtree(out)
    assert stand_in("good", "better", arguments=["--seeds=1", f"--results={kept}", "--collect"]) == 0
    assert (kept / "table.md").read_text() == table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--grid=all"],
            "--grid=all: unknown; known: paper_table, claim, causes, predictor_x_regulariser, sensitivity, lambda",
        ),
        (["--config=nowhere.py"], "--config=nowhere.py: there is no such file; the configs are in configs/*.py"),
        (["--reference=best"], "--reference=best: is no row of the grid; its rows: good"),
        (["--seeds=0"], "seeds"),
        (["--sedes=3"], "Unknown command line flag 'sedes'. Did you mean: seeds"),
        (["digits"], "digits: not a flag; flags begin with --"),
    ],
)
def test_a_mistake_is_answered_in_one_line(stand_in, out, capsys, arguments, message):
    assert stand_in("good", arguments=arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not out.exists()


def test_help_tells_what_there_is(capsys):
    assert command_line.main(["experiments", "--help"]) == 0
    said = capsys.readouterr().out
    for word in (*GRIDS, "--grid", "--seeds", "--task", "--collect", "--reference", "--at_once"):
        assert word in said


def test_rows_have_names_of_their_own_and_one_is_the_reference():
    for name, grid in GRIDS.items():
        labels = [cell.label for cell in grid.cells]
        assert len(set(labels)) == len(labels), name
        assert grid.reference in labels, name
        assert not any("/" in label or " " in label for label in labels), name


@pytest.mark.slow
def test_two_rows_are_trained_and_compared(tmp_path, monkeypatch, capfd):
    cells = (Cell("flow", "hamjepa", {"predictor.hidden_dim": 8}), Cell("none", "identity-none"))
    monkeypatch.setitem(GRIDS, "tried", Grid(cells, "flow"))
    small = [
        "--config.model.widths=(8, 8)",
        "--config.model.token_d_f=4",
        "--config.train.max_steps=2",
        "--config.data.batch_size=64",
        "--config.evaluation.probe.epochs=1",
        "--config.evaluation.probe.learning_rates=(1e-2,)",
        "--config.evaluation.few_label_probe.labels_per_class=(5,)",
        "--config.evaluation.few_label_probe.steps=1",
        "--config.evaluation.few_label_probe.epochs=1",
    ]
    config = f"--config={Path(__file__).parents[2] / 'configs' / 'digits.py'}"
    command = ["experiments", "--grid=tried", config, f"--output={tmp_path}", "--seeds=1", "--at_once=2", *small]
    monkeypatch.setenv("XLA_FLAGS", "")
    assert command_line.main(command) == 0, capfd.readouterr().out
    scores = json.loads((tmp_path / "results.json").read_text())["scores"]
    assert {row: scores[row]["kNN@20, %"]["0"] > 50 for row in scores} == dict.fromkeys(scores, True)
    assert list(scores) == ["flow", "none", "raw pixels", "untrained encoder"]
    assert command_line.main(command) == 0
    assert "all 2 runs are done" in capfd.readouterr().out
