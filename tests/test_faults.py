"""Whatever happens to a run, it goes on where it was: killed, stopped, out of space, with damaged files, elsewhere."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from processes import TINY, Run

pytestmark = pytest.mark.slow

STEPS = 42
EVERY_STEP = "--config.checkpoint.every_steps=1"
# What a process ends with when another is gone: ours, or that of jax's own watchdog.
LOST = (4, -signal.SIGABRT)


def final_state(workdir):
    """The arrays of the newest state of a run, on whatever devices they were."""
    path = workdir / "checkpoints" / str(saved_steps(workdir)[-1]) / "state"
    reader = ocp.PyTreeCheckpointer()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    return reader.restore(path, restore_args=as_numpy)


def records(workdir):
    """What was logged, without what depends on the time."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | dict.fromkeys(("views_per_second", "input_wait")) for line in lines]


def assert_identical(workdir, expected):
    assert records(workdir) == records(expected)
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir), final_state(expected))


def assert_equal_to_rounding(workdir, expected):
    """The same training, but for the order of sums: losses to 1e-5, parameters to 1e-4 of the largest of an array."""
    found, wanted = records(workdir), records(expected)
    assert [record["step"] for record in found] == [record["step"] for record in wanted]
    np.testing.assert_allclose([r["loss"] for r in found], [r["loss"] for r in wanted], rtol=1e-5)
    params, wanted_params = (jax.tree.leaves(final_state(directory)["params"]) for directory in (workdir, expected))
    for leaf, wanted_leaf in zip(params, wanted_params, strict=True):
        np.testing.assert_allclose(leaf, wanted_leaf, rtol=0, atol=1e-4 * max(np.max(np.abs(wanted_leaf)), 1e-3))


def steps_logged(workdir):
    log = workdir / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A function from devices and processes to the directory of a run that nothing disturbed."""
    runs = {}

    def make(devices=1, processes=1, *arguments):
        if (devices, processes) not in runs:
            workdir = tmp_path_factory.mktemp("undisturbed") / "run"
            run = Run(workdir, *arguments, devices=devices, processes=processes)
            assert run.wait() == [0] * processes, run.output()
            runs[devices, processes] = workdir
        return runs[devices, processes]

    return make


@pytest.mark.parametrize(("processes", "num_kills", "longest"), [(1, 6, 4.0), (2, 2, 7.0)])
def test_killed_at_any_moment(undisturbed, tmp_path, processes, num_kills, longest):
    moments = random.Random(0)
    kills = runs = 0
    while kills < num_kills:
        workdir, finished = tmp_path / f"run{runs}", False
        while not finished:
            run = Run(workdir, EVERY_STEP, processes=processes)
            victim = moments.choice(run.processes)
            victim.join(moments.uniform(0.0, longest))
            if kills < num_kills and victim.is_alive():
                victim.kill()
                kills += 1
                end_survivors(run, victim)
            codes = run.wait()
            finished = set(codes) == {0}
        assert_identical(workdir, undisturbed(1, processes))
        assert not list((workdir / "checkpoints").glob("*tmp*"))
        assert not (workdir / "damaged_checkpoints").exists()
        runs += 1
    assert kills == num_kills


def end_survivors(run, victim):
    """Makes sure that the others stop by themselves when one is killed; before they have met they may wait for it."""
    have_met = "2 processes" in run.output()
    for process in run.processes:
        if process is not victim:
            process.join(90 if have_met else 1)
            if not have_met:
                process.kill()
            # One that was done already has lost nothing.
            assert process.exitcode in (*LOST, 0) or not have_met, run.output()
            if process.exitcode == 4:
                assert "error: another process of the run was lost" in run.output()
                assert "to go on, give the same command again" in run.output()


def test_several_processes_are_one(undisturbed):
    assert_equal_to_rounding(undisturbed(1, 2), undisturbed(1, 1))
    assert_equal_to_rounding(undisturbed(1, 2), undisturbed(2, 1))


def test_the_local_launcher(undisturbed, tmp_path):
    launcher = Path(__file__).parents[1] / "launch" / "local.sh"
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


def test_a_signal_to_one_process_stops_all_at_the_same_step(undisturbed, tmp_path):
    run = Run(tmp_path / "run", processes=2)
    run.wait_until(lambda: steps_logged(run.workdir) > 5)
    os.kill(run.processes[1].pid, signal.SIGTERM)
    assert run.wait(30) == [143, 143], run.output()
    (stopped,) = set(re.findall(r"stopped by .+ after step (\d+), which is saved", run.output()))
    assert saved_steps(run.workdir) == [int(stopped)]
    assert Run(run.workdir, processes=2).wait() == [0, 0]
    assert_identical(run.workdir, undisturbed(1, 2))


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


# A kernel of 32 × 2048, which is large enough to be kept in parts.
IN_PARTS = ("--config.predictor.hidden_dim=2048", "--config.predictor.depth=1", "--config.mesh.fsdp=2")


@pytest.fixture(scope="module")
def stopped_on_four_devices(tmp_path_factory):
    """The directory of a run on 4 devices, parameters in two parts, that has made most of its steps."""
    workdir = tmp_path_factory.mktemp("four") / "run"
    run = Run(workdir, *IN_PARTS, "--config.train.max_steps=39", devices=4)
    assert run.wait() == [0], run.output()
    return workdir


@pytest.mark.parametrize(("devices", "processes"), [(1, 1), (4, 1), (8, 1), (2, 2)])
def test_going_on_with_another_number_of_devices(undisturbed, stopped_on_four_devices, tmp_path, devices, processes):
    workdir = tmp_path / "run"
    shutil.copytree(stopped_on_four_devices, workdir)
    fsdp = f"--config.mesh.fsdp={min(devices, 2)}"
    run = Run(workdir, *IN_PARTS, fsdp, devices=devices, processes=processes)
    assert run.wait() == [0] * processes, run.output()
    expected = undisturbed(4, 1, *IN_PARTS)
    if (devices, processes) == (4, 1):
        assert_identical(workdir, expected)
    else:
        assert_equal_to_rounding(workdir, expected)


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    first = Run(tmp_path / "run", "--config.train.epochs=1000")
    first.wait_until(lambda: steps_logged(first.workdir) > 0)
    second = Run(tmp_path / "run", "--config.train.epochs=1000")
    assert second.wait() == [2]
    assert f"a run is going on there (process {first.processes[0].pid} on" in second.output()
    assert first.processes[0].is_alive()
    os.kill(first.processes[0].pid, signal.SIGTERM)
    assert first.wait() == [143]
