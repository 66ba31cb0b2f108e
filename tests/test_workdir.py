import json
import os
import signal
import subprocess
import sys

import pytest

from hamjepa_jax.errors import UserError
from hamjepa_jax.workdir import Workdir, flatten

CONFIG = {"train": {"seed": 0, "epochs": 3}, "model": {"widths": [1, 2]}, "log": {"every_steps": 5}}


def changed(**values):
    return {group: fields | values.get(group, {}) for group, fields in CONFIG.items()}


def test_the_config_is_written_and_may_be_claimed_again(tmp_path):
    workdir = Workdir(tmp_path / "a" / "b")
    workdir.claim(CONFIG)
    workdir.claim(CONFIG)
    assert workdir.read_config_file() == CONFIG
    assert sorted(path.name for path in workdir.path.iterdir()) == ["config.json", "lock"]


def test_a_longer_run_of_the_same_experiment_is_allowed_and_noted(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.claim(CONFIG)
    longer = changed(train={"epochs": 9}, log={"every_steps": 1})
    workdir.claim(longer)
    assert workdir.read_config_file() == longer


@pytest.mark.parametrize("left", [(), ("lock",), ("lock", "config.tmp"), ("lock", "config.tmp", "views.png")])
def test_a_run_that_was_killed_while_it_began_begins_again(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text("{")
    Workdir(tmp_path).claim(CONFIG)
    assert Workdir(tmp_path).read_config_file() == CONFIG


CLAIM_AND_SLEEP = """
import os, sys, time
from pathlib import Path
from hamjepa_jax.workdir import Workdir
workdir = Workdir(Path(sys.argv[1]))
workdir.claim({"train": {"seed": 0}})
# A worker, which outlives the run.
if os.fork() == 0:
    time.sleep(20)
    os._exit(0)
print("claimed", flush=True)
time.sleep(20)
"""


def test_two_runs_in_a_directory_are_refused_until_the_first_ends_in_whatever_way(tmp_path):
    workdir, config = Workdir(tmp_path / "run"), {"train": {"seed": 0}}
    arguments = [sys.executable, "-c", CLAIM_AND_SLEEP, workdir.path]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True) as other:
        assert other.stdout.readline() == "claimed\n"
        before = {path: path.read_bytes() for path in workdir.path.iterdir()}
        with pytest.raises(UserError, match=rf"a run is going on there \(process {other.pid} on .+\); wait"):
            workdir.claim(config)
        # Looking is allowed.
        workdir.check(config)
        assert {path: path.read_bytes() for path in workdir.path.iterdir()} == before
        other.kill()
        other.wait()
        workdir.claim(config)
        os.killpg(other.pid, signal.SIGKILL)
    assert (workdir.path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_another_experiment_is_refused_and_nothing_is_touched(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.claim(CONFIG)
    before = workdir.config_file.read_bytes()
    with pytest.raises(UserError, match=r"another config: model.widths \(\[1, 2\] there, \[1, 3\] now\), train.seed"):
        workdir.claim(changed(model={"widths": [1, 3]}, train={"seed": 1}))
    with pytest.raises(UserError, match="another config: train.seed"):
        workdir.check(changed(train={"seed": 1}))
    assert workdir.config_file.read_bytes() == before


def test_a_directory_that_is_not_a_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not the directory of a run"):
        Workdir(tmp_path).claim(CONFIG)
    with pytest.raises(UserError, match="is not the directory of a run"):
        Workdir(tmp_path / "thesis.tex").claim(CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Workdir(tmp_path / "file" / "run").claim(CONFIG)


def test_reading_a_missing_or_damaged_config_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no run here"):
        Workdir(tmp_path).read_config_file()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG)[:20])
    with pytest.raises(UserError, match="cannot be read"):
        Workdir(tmp_path).read_config_file()


def test_flatten_joins_keys_with_dots():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_what_is_there_before_a_run_is_no_obstacle(tmp_path):
    workdir = Workdir(tmp_path)
    # A run was killed while its views were drawn.
    for name in ("views.png", "views.tmp", "lock", "config.tmp"):
        (tmp_path / name).touch()
    workdir.claim(CONFIG)
    assert workdir.read_config_file() == CONFIG
