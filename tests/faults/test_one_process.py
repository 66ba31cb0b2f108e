"""Whatever happens to a run, it goes on where it was: stopped, out of space, with damaged files."""

import os
import re
import shutil
import signal

import pytest
from compared_runs import assert_identical, saved_steps, steps_logged
from processes import EVERY_STEP, STEPS, Run

pytestmark = pytest.mark.slow


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, lambda path: path.unlink(), flip_a_byte])
def test_a_damaged_checkpoint_is_set_aside(undisturbed, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed(), workdir)
    shutil.rmtree(workdir / "checkpoints")
    assert Run(workdir, "--config.train.max_steps=30", "--config.checkpoint.every_steps=10").wait() == [0]
    assert saved_steps(workdir) == [20, 30]
    damage(max((workdir / "checkpoints" / "30" / "state").rglob("d/*"), key=lambda path: path.stat().st_size))
    run = Run(workdir)
    assert run.wait() == [0], run.output()
    assert "checkpoint 30 is damaged" in run.output()
    assert "going on from step 20" in run.output()
    assert (workdir / "damaged_checkpoints" / "30").is_dir()
    assert_identical(workdir, undisturbed())


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_a_save(undisturbed, tmp_path, signal_number, code):
    run = Run(tmp_path / "run", EVERY_STEP)
    checkpoints = run.workdir / "checkpoints"
    run.wait_until(lambda: steps_logged(run.workdir) > 5 and list(checkpoints.glob("*tmp*")))
    os.kill(run.processes[0].pid, signal_number)
    assert run.wait(30) == [code]
    stopped = int(re.search(r"stopped by \w+ after step (\d+), which is saved; to go on", run.output()).group(1))
    assert saved_steps(run.workdir)[-1] == stopped < STEPS
    assert Run(run.workdir).wait() == [0]
    assert_identical(run.workdir, undisturbed())


def test_a_full_disk(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    assert Run(workdir, "--config.train.max_steps=10").wait() == [0]
    before = {path: path.read_bytes() for path in (workdir / "checkpoints" / "10").rglob("*") if path.is_file()}
    # Less than the largest file of a checkpoint has, and more than the log.
    limited = Run(workdir, EVERY_STEP, max_file_size=2**14)
    assert limited.wait() == [3], limited.output()
    error = (
        r"error: checkpoint 11 cannot be written to .* \(file too large\); intact there: 10; free space, or .* again"
    )
    assert re.search(f"^{error}$", limited.output(), re.MULTILINE), limited.output()
    assert "Traceback" not in limited.output()
    assert {path: path.read_bytes() for path in before} == before
    run = Run(workdir)
    assert run.wait() == [0], run.output()
    assert_identical(workdir, undisturbed())


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    first = Run(tmp_path / "run", "--config.train.epochs=1000")
    first.wait_until(lambda: steps_logged(first.workdir) > 0)
    second = Run(tmp_path / "run", "--config.train.epochs=1000")
    assert second.wait() == [2]
    assert f"a run is going on there (process {first.processes[0].pid} on" in second.output()
    assert first.processes[0].is_alive()
    os.kill(first.processes[0].pid, signal.SIGTERM)
    assert first.wait() == [143]
