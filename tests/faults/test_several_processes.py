"""A run of several processes is the run of one, and stops and goes on as one."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from compared_runs import assert_equal_to_rounding, assert_identical, saved_steps, steps_logged
from processes import STEPS, TINY, Run

pytestmark = pytest.mark.slow


def test_several_processes_are_one(undisturbed):
    assert_equal_to_rounding(undisturbed(1, 2), undisturbed(1, 1))
    assert_equal_to_rounding(undisturbed(1, 2), undisturbed(2, 1))


def test_the_local_launcher(undisturbed, tmp_path):
    launcher = Path(__file__).parents[2] / "launch" / "local.sh"
    often = ("--config.checkpoint.every_minutes=0.003", "--config.checkpoint.keep=100")
    arguments = ["--config=configs/digits.py", f"--workdir={tmp_path}/run", *TINY, *often]
    environment = os.environ | {"PYTHON": sys.executable, "XLA_FLAGS": ""}
    launched = subprocess.run(
        [launcher, "--processes=2", "--", *arguments],
        cwd=launcher.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert launched.returncode == 0, launched.stderr
    assert "2 devices (cpu) of 2 processes, mesh data 2 × fsdp 1" in launched.stdout
    assert launched.stdout.count(f"step {STEPS}/{STEPS}") == 1
    assert len(saved_steps(tmp_path / "run")) > 2
    assert_identical(tmp_path / "run", undisturbed(1, 2))


def test_a_signal_to_one_process_stops_all_at_the_same_step(undisturbed, tmp_path):
    run = Run(tmp_path / "run", processes=2)
    run.wait_until(lambda: steps_logged(run.workdir) > 5)
    os.kill(run.processes[1].pid, signal.SIGTERM)
    assert run.wait(30) == [143, 143], run.output()
    (stopped,) = set(re.findall(r"stopped by .+ after step (\d+), which is saved", run.output()))
    assert saved_steps(run.workdir) == [int(stopped)]
    assert Run(run.workdir, processes=2).wait() == [0, 0]
    assert_identical(run.workdir, undisturbed(1, 2))
