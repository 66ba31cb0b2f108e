"""A run that is killed at any moment, as a whole or one process of it, ends as if it had not been."""

import random
import signal

import pytest
from compared_runs import assert_identical
from processes import EVERY_STEP, Run

pytestmark = pytest.mark.slow

# What a process ends with when another is gone: ours, or that of jax's own watchdog.
LOST = (4, -signal.SIGABRT)


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
