import io
import json
import math

import pytest
from rich.console import Console

from hamjepa_jax.errors import NonFiniteError
from hamjepa_jax.telemetry import Telemetry


def metrics(loss=1.0, **terms):
    finite = math.isfinite(loss) and all(map(math.isfinite, terms.values()))
    return {"loss": loss, **terms, "gradient_norm": 2.0, "finite": finite}


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
            log.record(step, metrics(loss=step, prediction=0.5), learning_rate=0.1)
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
            log.record(step, metrics(), learning_rate=0.1)
    # What was waited for before the first step, while it compiled, does not count.
    assert [record["input_wait"] for record in records(tmp_path / "log")] == [None, 0.1, 0.25]


def test_a_terminal_gets_a_progress_bar(tmp_path):
    log, output = telemetry(tmp_path / "log", terminal=True)
    with log:
        for step in range(6):
            log.record(step, metrics(), learning_rate=0.1)
    assert "6/6" in output.getvalue()
    assert "loss 1.0000" in output.getvalue()


def test_resuming_drops_the_records_that_will_be_repeated(tmp_path):
    log, _ = telemetry(tmp_path / "log")
    with log:
        for step in range(4):
            log.record(step, metrics(loss=step), learning_rate=0.1)
    with (tmp_path / "log").open("a") as file:
        file.write('{"step": 1, "cut o')
    log, _ = telemetry(tmp_path / "log", first_step=2)
    with log:
        log.record(2, metrics(loss=20), learning_rate=0.1)
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
        log.record(2, metrics(**broken), learning_rate=0.1)
    assert (error.value.step, error.value.terms) == (2, terms)
    (record,) = records(tmp_path / "log")
    assert record["loss"] == str(broken["loss"])
