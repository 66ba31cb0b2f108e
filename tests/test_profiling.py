import io

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from hamjepa_jax import build, profiling, train
from hamjepa_jax.errors import StorageError, UserError
from hamjepa_jax.profiling import Operation, StepTrace, costliest, markdown_table, parse_steps
from hamjepa_jax.workdir import Workdir


@jax.jit
def step(x):
    return jax.lax.fori_loop(0, 4, lambda _, y: jnp.sin(y @ x), x)


def make_steps(trace, first, last):
    x = step(jnp.full((64, 64), 0.01))
    with trace:
        for number in range(first, last):
            trace.before(range(number, number + 1), x)
            x = step(x)
        trace.end(x)


def tables(directory):
    return sorted(directory.glob("plugins/profile/*/operations.md"))


@pytest.mark.parametrize(("text", "steps"), [("", None), ("0:1", range(1)), ("10:13", range(10, 13))])
def test_steps_are_parsed(text, steps):
    assert parse_steps(text) == steps


@pytest.mark.parametrize("text", ["3", "3:", ":3", "3:3", "5:3", "-1:3", "a:b", "1:2:3", "1.5:2", " 1:2"])
def test_what_names_no_steps_gets_one_line(text):
    with pytest.raises(UserError) as refused:
        parse_steps(text)
    assert str(refused.value).startswith("config.profile: must be START:STOP")
    assert str(refused.value).endswith(f"got {text!r}")


# Reached, entered in the middle by a run that goes on, and still going on when the run ends: first and last step of the
# run, and the number of steps that were traced.
@pytest.mark.parametrize(("first", "last", "traced"), [(0, 5, 2), (3, 6, 1), (0, 3, 1)])
def test_the_steps_are_traced(tmp_path, first, last, traced):
    written = []
    make_steps(StepTrace(range(2, 4), tmp_path, written.append), first, last)
    (table,) = tables(tmp_path)
    assert len(written) == 1
    assert str(table) in written[0]
    assert list(table.parent.glob("*.trace.json.gz"))
    start = max(first, 2)
    assert table.read_text().startswith(f"Steps {start} to {start + traced - 1}: ")
    sines = [operation for operation in costliest(table.parent.glob("*.xplane.pb")) if "sine" in operation.name]
    # One in each round of the loop.
    assert sum(operation.count for operation in sines) == 4 * traced
    assert "sine" in table.read_text()


@pytest.mark.parametrize(("steps", "last"), [(None, 3), (range(7, 9), 3)])
def test_without_such_steps_nothing_is_written(tmp_path, steps, last):
    make_steps(StepTrace(steps, tmp_path / "profile", pytest.fail), 0, last)
    assert not (tmp_path / "profile").exists()


def test_an_exception_ends_the_trace(tmp_path):
    def interrupted(trace):
        with trace:
            trace.before(range(1), ())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(StepTrace(range(5), tmp_path, lambda line: None))
    # Another trace can begin.
    make_steps(StepTrace(range(1, 2), tmp_path / "another", lambda line: None), 0, 3)
    assert len(tables(tmp_path / "another")) == 1


# Dispatched together, some of the steps, or all, or steps around them.
@pytest.mark.parametrize(
    ("steps", "traced"), [(range(2, 4), "0 to 3"), (range(5, 7), "4 to 7"), (range(3, 5), "0 to 7")]
)
def test_steps_that_are_dispatched_together_are_traced_together(tmp_path, steps, traced):
    with StepTrace(steps, tmp_path, lambda line: None) as trace:
        for start in (0, 4, 8):
            trace.before(range(start, start + 4), step(jnp.ones((4, 4))))
    (table,) = tables(tmp_path)
    assert table.read_text().startswith(f"Steps {traced}: ")


def test_a_trace_that_cannot_be_written_gets_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file: cannot be written"):
        make_steps(StepTrace(range(1, 2), tmp_path / "file", pytest.fail), 0, 3)
    stop_trace = jax.profiler.stop_trace

    def stop_and_fail():
        stop_trace()
        raise jax.errors.JaxRuntimeError("no space left")

    monkeypatch.setattr(jax.profiler, "stop_trace", stop_and_fail)
    with pytest.raises(StorageError, match=r"profile: cannot be written \(no space left\)"):
        make_steps(StepTrace(range(1, 2), tmp_path / "profile", pytest.fail), 0, 3)


class Event:
    def __init__(self, start, duration):
        self.start_ns, self.duration_ns = start, duration


def test_what_an_operation_calls_is_not_its_own():
    events = [("loop", Event(0, 100)), ("dot", Event(10, 30)), ("sine", Event(40, 20)), ("dot", Event(100, 5))]
    assert sorted(profiling._own_times(events)) == [("dot", 5), ("dot", 30), ("loop", 50), ("sine", 20)]


class Line:
    def __init__(self, name, events):
        self.name, self.events = name, events


class Plane:
    def __init__(self, name, *lines):
        self.name, self.lines = name, lines


class Kernel(Event):
    def __init__(self, name, **stats):
        super().__init__(0, 10)
        self.name, self.stats = name, stats.items()


def names(*planes):
    return [name for line in profiling._operations_by_line(planes) for name, _ in line]


def test_an_operation_is_counted_once():
    host = Plane("/host:CPU", Line("python", [Kernel("launch", hlo_op="dot.1"), Kernel("other")]))
    stream = Line("Stream #1", [Kernel("gemm", hlo_op="dot.1"), Kernel("copy to host")])
    whole = Line("XLA Ops", [Kernel("%dot.1 = f32[2] dot(a, b)")])
    assert names(host) == ["dot.1"]
    assert names(host, Plane("/device:GPU:0", stream)) == ["dot.1"]
    assert names(host, Plane("/device:TPU:0", whole, stream), Plane("/device:TPU:1", whole)) == ["dot.1", "dot.1"]
    assert names(host, Plane("/device:CUSTOM:0", Line("Steps", [Kernel("10")]))) == ["dot.1"]


def test_processes_of_a_host_do_not_share_files(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling.time, "strftime", lambda pattern: "now")
    make_steps(StepTrace(range(1, 3), tmp_path, lambda line: None), 0, 4)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    make_steps(StepTrace(range(1, 3), tmp_path, pytest.fail), 0, 4)
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 2
    (table,) = tables(tmp_path)
    assert "sine" in table.read_text()


def test_the_tables_hold_the_costliest():
    operations = [Operation(f"fusion.{i}", 6, 0.004) for i in range(30)] + [Operation("dot_general", 3, 0.003)]
    lines = markdown_table(operations, steps=range(10, 13)).splitlines()
    assert lines[0].startswith("Steps 10 to 12: 41.0 ms of operations a step")
    assert lines[4:6] == ["| fusion | 60 | 40.00 | 97.6% |", "| dot_general | 1 | 1.00 | 2.4% |"]
    assert "| fusion.0 | 2 | 1.33 | 3.3% |" in lines
    assert sum("fusion." in line for line in lines) == profiling.COSTLIEST


@pytest.mark.slow
def test_a_run_traces_the_steps_that_its_config_names(digits_config, tmp_path):
    config = digits_config()
    config.profile = "2:"
    with pytest.raises(UserError, match="config.profile: must be START:STOP"):
        train.set_up(config, build.experiment(config))
    config.profile, config.train.max_steps = "2:9", 4
    experiment = build.experiment(config)
    console = Console(file=io.StringIO(), soft_wrap=True)
    train.train(config, experiment, train.set_up(config, experiment), Workdir(tmp_path), console)
    (table,) = tables(tmp_path / "profile")
    assert table.read_text().startswith("Steps 2 to 3: ")
    assert f"written: {table}" in console.file.getvalue()
