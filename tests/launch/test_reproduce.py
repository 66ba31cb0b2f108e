"""launch/reproduce_*.sh: one script by the name of each data set."""

import shlex

import pytest

DATA_SETS = ("cifar100", "cifar10", "tiny_imagenet100")


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_the_name_of_the_script_says_what_is_reproduced(bench, data_set):
    script = f"reproduce_{data_set}.sh"
    given = ["--seeds=2", "--config.data.data_dir=a b"]
    assert bench.run(script, *given).returncode == 0
    program = ["-m", "hamjepa_jax.experiments"]
    assert bench.lines("arguments") == {0: [*program, f"--reproduction={data_set}", *given]}
    result = bench.run(script, "--dry-run", *given[:1], "--scaled-down", given[1], PYTHON="python3")
    assert shlex.split(result.stdout) == ["python3", *program, f"--reproduction={data_set}_scaled_down", *given]


def test_the_exit_code_is_that_of_the_runs(bench):
    assert bench.run("reproduce_cifar100.sh", DO="0:exit 1").returncode == 1


def test_on_a_pod_it_makes_the_runs_one_by_one_below_what_is_mounted(bench):
    result = bench.run("reproduce_cifar100.sh", "--pod", "--dry-run", "--seeds=2", MOUNT="/mnt/here")
    expected = ["env", "MODULE=hamjepa_jax.experiments", "launch/tpu_pod.sh", "resume", "--", "--reproduction=cifar100"]
    output = "--output=/mnt/here/runs/reproduce/cifar100"
    assert shlex.split(result.stdout) == [*expected, "--seeds=2", "--at_once=1", "--runs_only", output]
    # And tpu_pod.sh runs what it is told to.
    bench.answer("gcloud", "[[ $* != *describe* ]] || echo READY")
    assert bench.run("reproduce_cifar100.sh", "--pod", ZONE="z").returncode == 0
    (started,) = [word for call in bench.calls() for word in call if word.startswith("--command=")]
    assert "run hamjepa_jax.experiments --reproduction=cifar100 --at_once=1" in started
