"""launch/experiments.sbatch: a task of an array job of Slurm."""

import re
import signal
from pathlib import Path

import pytest

SCRIPT = "experiments.sbatch"
TASK = {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "5"}


def test_a_task_makes_the_run_of_its_number(bench):
    result = bench.run(SCRIPT, "--grid=lambda", "--config=a b", **TASK)
    assert (result.returncode, bench.calls()) == (0, [])
    expected = ["-m", "hamjepa_jax.experiments", "--grid=lambda", "--config=a b", "--task=5"]
    assert bench.lines("arguments") == {0: expected}
    assert result.stdout.endswith("exit code 0\n")


def test_it_prints_what_it_would_run(bench):
    result = bench.run(SCRIPT, "--dry-run", "--grid=lambda", "--config=a b", SLURM_ARRAY_TASK_ID="3", PYTHON="python3")
    assert result.stdout == "python3 -m hamjepa_jax.experiments --grid=lambda --config=a\\ b --task=3\n"
    assert bench.lines("arguments") == {}


def test_it_refuses_to_run_outside_of_an_array_job(bench):
    result = bench.run(SCRIPT, "--grid=lambda")
    assert (result.returncode, bench.lines("arguments")) == (2, {})
    assert (
        result.stderr
        == "error: not a task of an array job; give this script to sbatch with --array, or try --dry-run\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("requeue", ["exit 0", "exit 1"])
def test_a_task_that_is_asked_to_stop_saves_once_and_is_queued_again(bench, number, requeue):
    bench.answer("scontrol", requeue)
    process = bench.start(SCRIPT, "--grid=lambda", DO="0:wait", **TASK)
    bench.wait_for("ready", 1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=10)
    assert bench.lines("signals") == {0: ["SIGTERM"]}
    assert bench.lines("saved") == {0: ["yes"]}
    assert "exit code 143: queueing the task again" in output
    assert bench.calls() == [["scontrol", "requeue", "17_5"]]
    assert process.returncode == (0 if requeue == "exit 0" else 143)


@pytest.mark.parametrize("code", [1, 2])
def test_a_task_that_fails_is_not_queued_again(bench, code):
    result = bench.run(SCRIPT, "--grid=lambda", DO=f"0:exit {code}", **TASK)
    assert (result.returncode, bench.calls()) == (code, [])


def test_a_task_has_time_to_save():
    text = (Path(__file__).parents[2] / "launch" / SCRIPT).read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    # To the script alone: the run would hear it twice. config.checkpoint.grace_seconds is 25.
    assert re.fullmatch(r"B:TERM@(\d+)", options["signal"]).group(1) >= "120"
    assert "requeue" in options
    assert options["ntasks"] == "1"
