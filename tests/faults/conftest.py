"""Runs that nothing disturbed, to compare others with."""

import pytest
from processes import Run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A function from devices and processes to the directory of a run that nothing disturbed."""
    runs = {}

    def make(devices=1, processes=1, *arguments):
        if (devices, processes, arguments) not in runs:
            workdir = tmp_path_factory.mktemp("undisturbed") / "run"
            run = Run(workdir, *arguments, devices=devices, processes=processes)
            assert run.wait() == [0] * processes, run.output()
            runs[devices, processes, arguments] = workdir
        return runs[devices, processes, arguments]

    return make
