"""A run goes on from its checkpoint on any number of devices and processes."""

import shutil

import pytest
from compared_runs import assert_equal_to_rounding, assert_identical
from processes import Run

pytestmark = pytest.mark.slow

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
