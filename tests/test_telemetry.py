import io
import json
import math

import pytest
from rich.console import Console

from hamjepa_jax.errors import NonFiniteError, StorageError
from hamjepa_jax.event_logs import EventLog, tagged
from hamjepa_jax.telemetry import Telemetry


def metrics(loss=1.0, *, halted=None, skipped=0, **terms):
    """Metrics of a step; one that is not finite halts the run unless it is said not to."""
    finite = math.isfinite(loss) and all(map(math.isfinite, terms.values()))
    told = {"finite": finite, "halted": not finite if halted is None else halted, "skipped": skipped}
    return {"loss": loss, **terms, "gradient_norm": 2.0, "learning_rate": 0.1, **told}


def telemetry(log_file, *, first_step=0, every_steps=1, terminal=False):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100)
    settings = {"total_steps": 6, "steps_per_epoch": 3, "views_per_step": 10, "every_steps": every_steps}
    return Telemetry(log_file, console=console, first_step=first_step, **settings), output


def records(log_file):
    return [json.loads(line) for line in log_file.read_text().splitlines()]


def test_every_nth_step_and_the_last_are_logged(tmp_path):
    log, output = telemetry(tmp_path / "log", every_steps=4)
    with log:
        for step in range(6):
            log.record(step, metrics(loss=step, prediction=0.5))
    logged = records(tmp_path / "log")
    assert [record["step"] for record in logged] == [3, 5]
    assert logged[0] | {"views_per_second": None, "input_wait": None} == {
        "step": 3,
        "epoch": pytest.approx(4 / 3, abs=1e-4),
        "learning_rate": 0.1,
        "views_per_second": None,
        "input_wait": None,
        "loss": 3.0,
        "prediction": 0.5,
        "gradient_norm": 2.0,
        "skipped": 0.0,
    }
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 4/6  loss 3.0000  ")
    assert "views/s" in lines[0]
    assert "left" in lines[0]


def test_the_time_spent_waiting_for_data_is_logged_as_a_share(tmp_path, monkeypatch):
    clock = iter((0, 10, 20))
    monkeypatch.setattr("hamjepa_jax.telemetry.time.monotonic", lambda: next(clock))
    log, _ = telemetry(tmp_path / "log")
    with log:
        for step, seconds in enumerate((100.0, 1.0, 4.0)):
            log.waited_for_input(seconds)
            log.record(step, metrics())
    # What was waited for before the first step, while it compiled, does not count.
    assert [record["input_wait"] for record in records(tmp_path / "log")] == [None, 0.1, 0.25]


def test_a_terminal_gets_a_progress_bar(tmp_path):
    log, output = telemetry(tmp_path / "log", terminal=True)
    with log:
        for step in range(6):
            log.record(step, metrics())
    assert "6/6" in output.getvalue()
    assert "loss 1.0000" in output.getvalue()


def test_resuming_drops_the_records_that_will_be_repeated(tmp_path):
    log, _ = telemetry(tmp_path / "log")
    with log:
        for step in range(4):
            log.record(step, metrics(loss=step))
    with (tmp_path / "log").open("a") as file:
        file.write('{"step": 1, "cut o')
    log, _ = telemetry(tmp_path / "log", first_step=2)
    with log:
        log.record(2, metrics(loss=20))
    assert [(record["step"], record["loss"]) for record in records(tmp_path / "log")] == [(0, 0), (1, 1), (2, 20)]


@pytest.mark.parametrize(
    ("broken", "terms"),
    [
        ({"loss": math.nan, "prediction": 1.0, "logdet": math.inf}, ["logdet"]),
        ({"loss": math.nan, "prediction": math.nan, "logdet": math.inf, "mean": 0.0}, ["logdet", "prediction"]),
        ({"loss": math.nan, "prediction": math.nan, "logdet": math.nan}, ["every term"]),
        ({"loss": math.inf, "prediction": 1.0, "logdet": 0.0}, ["loss"]),
    ],
)
def test_terms_that_are_not_finite_are_named_and_logged(tmp_path, broken, terms):
    log, _ = telemetry(tmp_path / "log", every_steps=100)
    with log, pytest.raises(NonFiniteError, match=f"step 2: not finite: {', '.join(terms)}") as error:
        log.record(2, metrics(**broken))
    assert (error.value.step, error.value.terms) == (2, terms)
    (record,) = records(tmp_path / "log")
    assert record["loss"] == str(broken["loss"])


def test_a_skipped_step_is_told_and_logged_and_training_goes_on(tmp_path):
    log, output = telemetry(tmp_path / "log", every_steps=100)
    with log:
        log.record(0, metrics())
        values = log.record(1, metrics(loss=math.nan, term=math.nan, halted=False, skipped=1))
        assert log.record(2, metrics(skipped=1))["skipped"] == 1
    assert math.isnan(values["loss"])
    assert "step 1: not finite: every term; skipped, 1 so far" in output.getvalue()
    (record,) = records(tmp_path / "log")
    assert (record["step"], record["loss"], record["skipped"]) == (1, "nan", 1)


def test_an_update_that_alone_is_not_finite_is_named(tmp_path):
    log, _ = telemetry(tmp_path / "log")
    with log, pytest.raises(NonFiniteError, match="step 0: not finite: the updated parameters"):
        log.record(0, metrics(term=1.0) | {"finite": False, "halted": True})


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    log, _ = telemetry(tmp_path / "log")
    (tmp_path / "log").symlink_to("/dev/full")
    with log, pytest.raises(StorageError, match="log: cannot be written .No space left on device."):
        log.record(0, metrics())


def test_a_process_that_writes_nothing_records_all_the_same():
    log, output = telemetry(None)
    with log:
        assert log.record(0, metrics(loss=3.0))["loss"] == 3.0
    assert "step 1/6" in output.getvalue()


def test_the_shares_of_the_gradient_are_not_blamed_for_a_term_that_is_not_finite(tmp_path):
    log, _ = telemetry(tmp_path / "log")
    with log, pytest.raises(NonFiniteError) as error:
        log.record(0, metrics(loss=math.nan, logdet=math.nan, mean=1.0, gradient_share_mean=math.nan))
    assert error.value.terms == ["logdet"]


def test_what_is_wrong_for_a_tenth_of_the_run_is_said_and_logged(tmp_path):
    log, output = telemetry(tmp_path / "log")
    with log:
        for step in range(6):
            log.record(step, metrics(gradient_share_mean=0.0))
    # An epoch is longer than a tenth of this run.
    warnings = {record["step"]: record.get("warnings") for record in records(tmp_path / "log")}
    (warning,) = warnings.pop(3)
    assert "the term 'mean' does not act" in warning
    assert warning in " ".join(output.getvalue().split())
    assert set(warnings.values()) == {None}


def test_a_run_that_goes_on_warns_when_it_would_have_without_the_break(tmp_path):
    for name, parts in (("whole", (range(6),)), ("resumed", (range(3), range(2, 6)))):
        for steps in parts:
            log, _ = telemetry(tmp_path / name, first_step=steps[0])
            with log:
                for step in steps:
                    log.record(step, metrics(gradient_share_mean=0.0))
    warnings = [[record.get("warnings") for record in records(tmp_path / name)] for name in ("whole", "resumed")]
    assert warnings[0] == warnings[1]
    assert warnings[0][3]


def test_what_the_online_probe_finds_is_shown_and_logged_at_once(tmp_path):
    for terminal in (False, True):
        log, output = telemetry(tmp_path / "log", every_steps=3, terminal=terminal)
        with log:
            for step in range(6):
                found = {"online_knn20": 0.9125, "online_ridge": 0.95} if step == 1 else {}
                values = log.record(step, metrics() | found)
                assert values.get("online_knn20") == found.get("online_knn20")
        logged = {record["step"]: record.get("online_knn20") for record in records(tmp_path / "log")}
        assert logged == {1: 0.9125, 2: None, 5: None}
        assert "kNN@20 91.2 %  ridge 95.0 %" in output.getvalue()
        (tmp_path / "log").unlink()


def test_the_online_probe_is_not_blamed_for_what_is_not_finite(tmp_path):
    log, _ = telemetry(tmp_path / "log")
    with log, pytest.raises(NonFiniteError) as error:
        log.record(0, metrics(loss=math.nan, term=math.nan) | {"online_ridge": 0.5})
    assert error.value.terms == ["every term"]


def test_time_that_is_not_spent_on_training_does_not_count(tmp_path, monkeypatch):
    clock = iter((0, 10, 130))
    monkeypatch.setattr("hamjepa_jax.telemetry.time.monotonic", lambda: next(clock))
    log, _ = telemetry(tmp_path / "log")
    with log:
        log.record(0, metrics())
        log.waited_for_input(1.0)
        log.record(1, metrics())
        log.paused(110.0)
        log.record(2, metrics())
    assert [record["views_per_second"] for record in records(tmp_path / "log")] == [None, 1.0, 1.0]
    assert [record["input_wait"] for record in records(tmp_path / "log")] == [None, 0.1, 0.05]


class Listener(EventLog):
    """An event log that keeps what it is given."""

    def __init__(self):
        self.points, self.closed = [], False

    def begin(self, step, config):
        raise AssertionError

    def picture(self, step, tag, path):
        raise AssertionError

    def scalars(self, step, values):
        if step == 4:
            raise StorageError("full")
        self.points.append((step, values))

    def close(self):
        self.closed = True


def test_every_record_goes_to_the_event_logs(tmp_path):
    listeners = [Listener(), Listener()]
    settings = {"total_steps": 6, "steps_per_epoch": 3, "views_per_step": 10, "every_steps": 2}
    with Telemetry(
        tmp_path / "log", console=Console(quiet=True), first_step=0, event_logs=listeners, **settings
    ) as log:
        for step in range(4):
            broken = step == 2
            log.record(step, metrics(loss=math.nan if broken else float(step), mean=math.inf, halted=False))
        with pytest.raises(StorageError, match="full"):
            log.record(4, metrics(mean=math.inf, halted=False))
    expected = [(record["step"], tagged(record)) for record in records(tmp_path / "log")]
    assert [step for step, _ in expected] == [0, 1, 2, 3, 4]
    for listener in listeners:
        assert str(listener.points) == str(expected[:4])
        assert listener.closed
