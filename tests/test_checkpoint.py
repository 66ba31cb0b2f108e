"""What is saved comes back bit for bit, on any devices, and neither damaged files nor full disks lose a run."""

import contextlib
import gc
import json
import logging
import os
import re
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from hamjepa_jax import checksums, sharding, version
from hamjepa_jax.checkpoint import Checkpointer
from hamjepa_jax.errors import StorageError, UserError
from hamjepa_jax.version import code_version

CONFIG = {"model": {"widths": [8, 16]}, "data": {"view_size": 32, "data_dir": "here"}, "log": {"every_steps": 1}}


@pytest.fixture(autouse=True)
def collected_between_saves():
    """What a failed save leaves is collected here: in a thread that is starting, CPython 3.11 waits for it for ever."""
    yield
    gc.collect()


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any


def make_state(seed):
    rng = np.random.default_rng(seed)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
        "blocks": [{"scale": jnp.asarray(rng.normal(size=8), jnp.bfloat16)}],
        "none": {},
    }
    return State(jnp.int32(seed), params, (State(jnp.int32(seed), jax.tree.map(lambda leaf: leaf * 2, params), ()),))


def abstract(state):
    return jax.eval_shape(lambda: state)


def placement(state, device_number=0):
    return jax.tree.map(lambda leaf: jax.sharding.SingleDeviceSharding(jax.devices()[device_number]), state)


def save(checkpointer, *steps, losses=()):
    for step, loss in zip(steps, [*losses, *[1.0] * len(steps)], strict=False):
        metrics = {"loss": loss, "accuracy": 0.5}
        checkpointer.save(step, make_state(step), data={"next_step": step}, config=CONFIG, metrics=metrics)


def restore(checkpointer, template=None, config=CONFIG, step=None):
    template = make_state(0) if template is None else template
    return checkpointer.restore(abstract(template), placement(template), config=config, step=step)


def assert_identical(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for leaf, wanted_leaf in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert leaf.dtype == wanted_leaf.dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted_leaf))


def contents(directory):
    """Every file of a directory with its bytes, and every directory."""
    paths = sorted(directory.rglob("*"))
    return {str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in paths}


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
    """Checkpoints 1, 2 and 3, not to be changed."""
    directory = tmp_path_factory.mktemp("three") / "checkpoints"
    with contextlib.closing(Checkpointer(directory, keep=3)) as checkpointer:
        save(checkpointer, 1, 2, 3)
    return directory


@pytest.fixture
def directory(three_checkpoints, tmp_path):
    """A copy of the checkpoints 1, 2 and 3."""
    return Path(shutil.copytree(three_checkpoints, tmp_path / "checkpoints"))


@pytest.fixture
def lines():
    return []


@pytest.fixture
def open_checkpoints(directory, lines):
    """A function that opens `directory` and appends what is reported to `lines`."""
    with contextlib.ExitStack() as stack:

        def open_them(**arguments):
            checkpointer = Checkpointer(directory, **{"keep": 3, "report": lines.append} | arguments)
            return stack.enter_context(contextlib.closing(checkpointer))

        yield open_them


def test_a_checkpoint_comes_back_whole(tmp_path):
    directory = tmp_path / "new" / "checkpoints"
    with contextlib.closing(Checkpointer(directory, keep=2)) as checkpointer:
        assert checkpointer.newest_step() is None
        assert restore(checkpointer) is None
        save(checkpointer, 3, losses=[0.25])
        assert checkpointer.newest_step() == 3
    with contextlib.closing(Checkpointer(directory, keep=2)) as checkpointer:
        before = contents(directory)
        save(checkpointer, 3, losses=[0.75])
        checkpointer.check()
        restored = restore(checkpointer)
        assert restore(checkpointer, step=2) is None
    assert contents(directory) == before
    assert restored.step == 3
    assert restored.data == {"next_step": 3}
    assert_identical(restored.state, make_state(3))
    items = {item: json.loads((directory / "3" / item / "metadata").read_text()) for item in ("config", "measurements")}
    assert items == {"config": CONFIG, "measurements": {"loss": 0.25, "accuracy": 0.5}}
    assert json.loads((directory / "3" / "version" / "metadata").read_text()) == code_version()


NAN = float("nan")
WHAT_IS_KEPT = {
    "min": ("min", [3.0, 1.0, 2.0, 4.0, 5.0], 2, [2, 4, 5]),
    "max": ("max", [3.0, 6.0, 2.0, 4.0, 5.0], 2, [2, 4, 5]),
    "the best is among the newest": ("max", [1.0, 2.0, 3.0, 5.0, 4.0], 4, [4, 5]),
    "not a number": ("min", [NAN, 3.0, NAN, 4.0, NAN], 2, [2, 4, 5]),
    "infinite": ("max", [float("inf"), 2.0, 1.0, 1.0, 1.0], 2, [2, 4, 5]),
    "none is finite": ("min", [NAN] * 5, None, [4, 5]),
    "the newest of equals": ("max", [2.0, 2.0, 1.0, 1.0, 1.0], 2, [2, 4, 5]),
}


@pytest.mark.parametrize(("mode", "losses", "best", "kept"), WHAT_IS_KEPT.values(), ids=WHAT_IS_KEPT)
def test_the_newest_and_the_best_are_kept(tmp_path, mode, losses, best, kept):
    # Opened anew in between, so that the scores come from the files as well.
    for steps in (slice(0, 3), slice(3, 5)):
        checkpointer = Checkpointer(tmp_path, keep=2, best_metric="loss", best_mode=mode)
        with contextlib.closing(checkpointer):
            save(checkpointer, *range(1, 6)[steps], losses=losses[steps])
        assert checkpointer.newest_step() == (3 if steps.start == 0 else 5)
    assert steps_in(tmp_path) == kept
    with contextlib.closing(
        Checkpointer(tmp_path, keep=2, best_metric="loss", best_mode=mode, read_only=True)
    ) as reader:
        assert reader.best_step() == best
        if best is not None:
            assert restore(reader, step=best).step == best


def test_without_the_metric_there_is_no_best(tmp_path):
    for metric in (None, "unknown"):
        with contextlib.closing(Checkpointer(tmp_path, keep=1, best_metric=metric)) as checkpointer:
            save(checkpointer, *([1, 2] if metric is None else [3, 4]))
            assert checkpointer.best_step() is None
        assert steps_in(tmp_path) == [2 if metric is None else 4]


def largest_file(directory):
    return max((file for file in directory.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


DAMAGES = {
    "truncated": (lambda step: os.truncate(largest_file(step / "state"), 10), r"state/\S+: 10 bytes of \d+"),
    "missing": (lambda step: largest_file(step / "state").unlink(), r"state/\S+: missing"),
    "flipped bit": (lambda step: flip_a_bit(largest_file(step / "state")), r"state/\S+: other bytes than were written"),
    "flipped bit in the data": (lambda step: flip_a_bit(step / "data" / "metadata"), "data/metadata: other bytes"),
    "no state": (lambda step: shutil.rmtree(step / "state"), "state: missing"),
    "no data": (lambda step: shutil.rmtree(step / "data"), r"data/\S+: missing"),
    "empty": (empty, "state: missing"),
    "empty checksums": (lambda step: os.truncate(step / "checksums.json", 0), "checksums.json: JSONDecodeError"),
    "other checksums": (lambda step: (step / "checksums.json").write_text("[]"), "checksums.json: AttributeError"),
}


@pytest.mark.parametrize(("damage", "described"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_set_aside(directory, open_checkpoints, lines, damage, described):
    damage(directory / "3")
    damaged, aside = contents(directory / "3"), directory.parent / "damaged_checkpoints" / "3"
    checkpointer = open_checkpoints()
    restored = restore(checkpointer)
    assert (restored.step, restored.data) == (2, {"next_step": 2})
    assert_identical(restored.state, make_state(2))
    assert re.search(rf"checkpoint 3 is damaged \({described}.*\); moved to {re.escape(str(aside))}$", lines.pop())
    assert not lines
    assert contents(aside) == damaged
    assert (steps_in(directory), checkpointer.newest_step()) == ([1, 2], 2)
    # The run goes on, and its next checkpoint 3 is good.
    save(checkpointer, 3)
    assert_identical(restore(checkpointer).state, make_state(3))


def test_all_that_are_damaged_are_set_aside(directory, open_checkpoints, lines):
    aside = directory.parent / "damaged_checkpoints"
    (aside / "3").mkdir(parents=True)
    for step in ("2", "3"):
        flip_a_bit(largest_file(directory / step / "state"))
    checkpointer = open_checkpoints()
    assert_identical(restore(checkpointer).state, make_state(1))
    assert [re.search(r"checkpoint (\d)", line)[1] for line in lines] == ["3", "2"]
    assert sorted(path.name for path in aside.iterdir()) == ["2", "3", "3-2"]
    shutil.rmtree(directory / "1" / "state")
    wanted = (
        f"{directory}: of 1 checkpoints none can be read; they are now in {aside}, and the same command given again"
    )
    with pytest.raises(UserError, match=re.escape(wanted)):
        restore(checkpointer)
    assert restore(checkpointer) is None


def test_reading_changes_nothing(directory, open_checkpoints, lines):
    empty(directory / "3")
    flip_a_bit(largest_file(directory / "2" / "state"))
    (directory / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    before = contents(directory.parent)
    checkpointer = open_checkpoints(read_only=True, keep=1, best_metric="loss")
    assert restore(checkpointer).step == 1
    assert [line.startswith(f"{directory}: checkpoint {3 - i} is damaged") for i, line in enumerate(lines)] == [
        True
    ] * 2
    assert contents(directory.parent) == before
    empty(directory / "1")
    with pytest.raises(UserError, match="of 3 checkpoints none can be read; bring back a copy of one, or train again"):
        restore(checkpointer)
    checkpointer.close()
    assert contents(directory.parent)["checkpoints/4.orbax-checkpoint-tmp/state"] is None
    assert steps_in(directory) == [1, 2, 3]


def test_reading_creates_no_directory(tmp_path):
    with contextlib.closing(Checkpointer(tmp_path / "none", keep=1, read_only=True)) as checkpointer:
        assert restore(checkpointer) is None
        assert checkpointer.newest_step() is checkpointer.best_step() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["_METADATA", "largest"])
def test_without_checksums_orbax_decides(directory, open_checkpoints, lines, name):
    for step in ("2", "3"):
        (directory / step / "checksums.json").unlink()
    os.truncate(largest_file(directory / "3" / "state") if name == "largest" else directory / "3" / "state" / name, 10)
    assert_identical(restore(open_checkpoints()).state, make_state(2))
    assert re.search(r"checkpoint 3 is damaged \(.+\); moved to", lines.pop())
    assert steps_in(directory) == [1, 2]


@pytest.mark.parametrize(
    ("where", "raised", "wanted"),
    [
        ("hamjepa_jax.checksums._checksum", PermissionError(13, "Permission denied", "the file"), StorageError),
        ("orbax.checkpoint.CheckpointManager.restore", PermissionError(13, "Permission denied"), StorageError),
        ("orbax.checkpoint.CheckpointManager.restore", MemoryError("no memory"), MemoryError),
        ("orbax.checkpoint.CheckpointManager.restore", ValueError("the files are not to blame"), ValueError),
    ],
)
def test_what_is_no_damage_moves_nothing(directory, open_checkpoints, lines, monkeypatch, where, raised, wanted):
    checkpointer, before = open_checkpoints(), contents(directory.parent)

    def fail(*arguments, **named):
        raise raised

    monkeypatch.setattr(where, fail)
    with pytest.raises(wanted, match="may not be read" if wanted is StorageError else str(raised)):
        restore(checkpointer)
    assert contents(directory.parent) == before
    assert not lines


def with_kernel(kernel):
    state = make_state(0)
    return state._replace(params=state.params | {"kernel": kernel})


def renamed(state):
    params = dict(state.params)
    return state._replace(params=params | {"weights": params.pop("kernel")})


MISMATCHES = {
    "shape": (with_kernel(jnp.zeros((16, 9))), r"params/kernel \(\(16, 8\) float32 there, \(16, 9\) float32 now\);"),
    "dtype": (
        with_kernel(jnp.zeros((16, 8), jnp.bfloat16)),
        r"params/kernel \(\(16, 8\) float32 there, \(16, 8\) bfloat16 now\);",
    ),
    "missing and unexpected": (
        renamed(make_state(0)),
        r"params/kernel \(\(16, 8\) float32 there, missing now\), "
        r"params/weights \(missing there, \(16, 8\) float32 now\);",
    ),
    "many": (
        jax.tree.map(lambda leaf: jnp.zeros(3), make_state(0)),
        r"opt_state/0/params/\S+ [^;]+, opt_state/0/params/\S+ [^;]+, opt_state/0/step [^;]+ and 3 more;",
    ),
}


@pytest.mark.parametrize(("template", "arrays"), MISMATCHES.values(), ids=MISMATCHES)
def test_other_arrays_are_named_and_explained(directory, open_checkpoints, lines, template, arrays):
    checkpointer, before = open_checkpoints(), contents(directory.parent)
    elsewhere = CONFIG | {"data": {"view_size": 32, "data_dir": "there"}, "log": {}}
    with pytest.raises(UserError) as refusal:
        restore(checkpointer, template, config=elsewhere)
    program = r"hamjepa_jax 0\.\S+( at commit [0-9a-f]{40}\S*)? with jax \S+"
    same = rf" the config is the same, but the code may not be: {program} wrote it, and this is {program}"
    start = re.escape(f"{directory}: checkpoint 3 has other arrays: ")
    assert re.fullmatch(start + arrays + same, str(refusal.value))
    other = elsewhere | {"model": {"widths": [8, 17], "depth": 2}}
    with pytest.raises(UserError) as refusal:
        restore(checkpointer, template, config=other)
    causes = (
        r" because of config.model.depth \(None there, 2 now\), config.model.widths \(\[8, 16\] there, \[8, 17\] now\)"
    )
    assert re.fullmatch(
        start + arrays + causes + "; take the config of that run, or another --workdir", str(refusal.value)
    )
    assert contents(directory.parent) == before
    assert not lines
    assert restore(checkpointer, config=other).step == 3


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_the_number_of_devices_may_change(tmp_path, monkeypatch, num_devices):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)
    state = make_state(7)

    def placed(data, fsdp):
        mesh = sharding.make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp])
        return sharding.state_sharding(mesh, abstract(state))

    there, here = placed(1, 4), placed(2 if num_devices == 8 else 1, min(num_devices, 4))
    sharded = jax.device_put(state, there)
    assert sharded.params["kernel"].addressable_data(0).shape == (4, 8)
    with contextlib.closing(Checkpointer(tmp_path, keep=1)) as checkpointer:
        checkpointer.save(7, sharded, data={}, config=CONFIG, metrics={})
    with contextlib.closing(Checkpointer(tmp_path, keep=1, read_only=True)) as checkpointer:
        restored = checkpointer.restore(abstract(state), here, config=CONFIG).state
    assert_identical(restored, state)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == here


@contextlib.contextmanager
def files_limited_to(num_bytes):
    """Writing more than this to a file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def wait_for_failure(checkpointer):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.001)
        checkpointer.check()


@pytest.mark.parametrize("notice", [wait_for_failure, Checkpointer.close, lambda checkpointer: save(checkpointer, 3)])
@pytest.mark.parametrize("limit", [0, 1000])
def test_a_full_disk_loses_no_checkpoint(tmp_path, lines, limit, notice):
    directory = tmp_path / "checkpoints"
    with contextlib.closing(Checkpointer(directory, keep=1)) as checkpointer:
        save(checkpointer, 1)
    failing = Checkpointer(directory, keep=1)
    noise = jax.random.normal(jax.random.key(0), (10000,))

    def save_and_notice():
        failing.save(2, {"noise": noise}, data={}, config={}, metrics={})
        notice(failing)

    with files_limited_to(limit):
        with pytest.raises(StorageError) as failure:
            save_and_notice()
        failing.close()
    assert str(failure.value) == (
        f"checkpoint 2 cannot be written to {directory} (file too large); intact there: 1; free space, or mend what "
        "else is wrong, and give the same command again"
    )
    with contextlib.closing(Checkpointer(directory, keep=1, report=lines.append)) as checkpointer:
        assert_identical(restore(checkpointer).state, make_state(1))
        save(checkpointer, 2)
    assert [path.name for path in directory.iterdir()] == ["2"]
    assert not lines


def test_a_failure_is_noticed_while_other_processes_are_waited_for(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path, keep=1)

    def fail(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checksums, "_checksum", fail)
    checkpointer.save(1, make_state(1), data={}, config={}, metrics={})
    monkeypatch.setattr(ocp.CheckpointManager, "is_saving_in_progress", lambda manager: True)
    with pytest.raises(StorageError, match=r"checkpoint 1 cannot .* \(no space left on device\); intact there: none;"):
        wait_for_failure(checkpointer)
    assert not steps_in(tmp_path)
    checkpointer.close()


def test_a_failure_at_the_very_end_is_noticed(tmp_path, monkeypatch):
    def fail(manager, step):
        raise OSError(5, "Input/output error")

    checkpointer = Checkpointer(tmp_path, keep=1)
    monkeypatch.setattr(ocp.CheckpointManager, "_finalize_checkpoint", fail)
    save(checkpointer, 1)
    with pytest.raises(StorageError, match=r"checkpoint 1 cannot .* \(input/output error\); intact there: 1;"):
        wait_for_failure(checkpointer)
    checkpointer.close()


def test_a_directory_that_cannot_be_written(tmp_path):
    directory = tmp_path / "checkpoints"
    checkpointer = Checkpointer(directory, keep=1)
    save(checkpointer, 1)
    checkpointer.close()
    checkpointer = Checkpointer(directory, keep=1)
    shutil.rmtree(directory)
    directory.write_text("a file")

    def save_and_notice():
        save(checkpointer, 2)
        wait_for_failure(checkpointer)

    wanted = r"checkpoint 2 cannot be written to .* \(not a directory\); intact there: none"
    with pytest.raises(StorageError, match=wanted):
        save_and_notice()
    # A second attempt fails alike, and does not wait for what will never come.
    with pytest.raises(StorageError, match=wanted):
        save(checkpointer, 3)
    checkpointer.close()
    with pytest.raises(StorageError, match=r"no checkpoints can be written there \((not a directory|file exists)\)"):
        Checkpointer(directory / "below", keep=1)


def test_donated_buffers_are_saved_as_they_were(tmp_path):
    names = [f"array{number}" for number in range(4)]
    make = jax.jit(lambda: {n: jax.random.bits(jax.random.key(i), (2**22,), jnp.uint32) for i, n in enumerate(names)})
    overwrite = jax.jit(lambda state: jax.tree.map(lambda array: array * 3 + 1, state), donate_argnums=0)
    state = make()
    where = state["array0"].unsafe_buffer_pointer()
    # The memory is indeed written over, as long as nobody holds it.
    assert overwrite(state)["array0"].unsafe_buffer_pointer() == where
    state = make()
    with contextlib.closing(Checkpointer(tmp_path, keep=1)) as checkpointer:
        checkpointer.save(1, state, data={}, config={}, metrics={})
        later = overwrite(state)
        for _ in range(5):
            later = overwrite(later)
    wanted = make()
    assert_identical(restore(Checkpointer(tmp_path, keep=1, read_only=True), wanted).state, wanted)


def test_what_a_killed_save_left_is_cleaned_up(directory, open_checkpoints):
    leftovers = [directory / "4.orbax-checkpoint-tmp", directory / "5.orbax-checkpoint-tmp-1234"]
    for leftover in leftovers:
        shutil.copytree(directory / "3", leftover)
    reader = open_checkpoints(read_only=True)
    assert (reader.newest_step(), restore(reader).step) == (3, 3)
    reader.close()
    assert all(leftover.is_dir() for leftover in leftovers)
    checkpointer = open_checkpoints()
    assert restore(checkpointer).step == 3
    save(checkpointer, 4)
    checkpointer.close()
    assert sorted(path.name for path in directory.iterdir()) == ["2", "3", "4"]


def test_damaged_measurements_hinder_only_their_checkpoint(directory, open_checkpoints, lines):
    (directory / "3" / "measurements" / "metadata").write_bytes(b"\x00\xff{")
    checkpointer = open_checkpoints(best_metric="loss")
    assert checkpointer.best_step() == 2
    assert restore(checkpointer).step == 2
    assert "checkpoint 3 is damaged (measurements/metadata" in lines.pop()


def test_orbax_is_silent(directory, open_checkpoints, caplog, capfd):
    os.truncate(directory / "3" / "_CHECKPOINT_METADATA", 0)
    assert restore(open_checkpoints(read_only=True)).step == 3
    checkpointer = open_checkpoints()
    save(checkpointer, 4)
    checkpointer.close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capfd.readouterr() == ("", "")


def test_the_version_names_the_commit(tmp_path, monkeypatch):
    package = tmp_path / "hamjepa_jax"
    package.mkdir()
    (package / "version.py").write_text("")
    monkeypatch.setattr(version, "__file__", str(package / "version.py"))
    assert code_version()["commit"] is None

    def git(*arguments):
        author = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.com")
        return subprocess.run(("git", *author, *arguments), cwd=tmp_path, check=True, capture_output=True, text=True)

    for arguments in (["init"], ["add", "."], ["commit", "-m", "first"], ["tag", "-a", "release", "-m", "one"]):
        git(*arguments)
    head = git("rev-parse", "HEAD").stdout.strip()
    assert code_version()["commit"] == head
    (package / "version.py").write_text("changed")
    changed = code_version()
    assert changed["commit"] == f"{head}+changes"
    assert changed["orbax"] == ocp.__version__
    assert (changed["jax"], changed["devices"], changed["processes"]) == (jax.__version__, 8, 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version()["commit"] is None
