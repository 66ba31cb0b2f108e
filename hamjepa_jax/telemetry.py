"""What a run says while it trains: progress, metrics.jsonl and other logs, alarms, and what is not finite."""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hamjepa_jax.alarms import Alarms
from hamjepa_jax.atomic_files import replacing, writing
from hamjepa_jax.errors import NonFiniteError
from hamjepa_jax.event_logs import EventLog, tagged

# Not finite whenever a term is not; the terms are the better answer.
CONSEQUENCES = ("loss", "gradient_norm", "gradient_share_")
NO_TERMS = ("skipped", "online_")


class Telemetry:
    """Records the metrics of every step; a context manager that owns the progress bar and the logs."""

    def __init__(
        self,
        log_file: Path | None,
        *,
        console: Console,
        first_step: int,
        total_steps: int,
        steps_per_epoch: int,
        views_per_step: int,
        every_steps: int,
        event_logs: Sequence[EventLog] = (),
    ):
        """Opens the log; records from `first_step` on, which are about to be repeated, are dropped from it.

        Args:
            log_file: metrics.jsonl, or None in a process that writes nothing.
            console: where progress is shown.
            first_step: step that the run starts or resumes from.
            total_steps: steps of the whole run.
            steps_per_epoch: steps of an epoch.
            views_per_step: views of all devices in a step, for the speed.
            every_steps: steps between two records, and between two plain lines.
            event_logs: where every record goes too; they are closed at the end.
        """
        self._log_file = log_file or Path(os.devnull)
        kept = _drop_records_from(self._log_file, first_step)
        self._console = console
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._views_per_step, self._every_steps = views_per_step, every_steps
        self._event_logs = event_logs
        self._alarms = Alarms(patience=max(steps_per_epoch, total_steps // 10))
        for record in kept:
            # A run that goes on says what it would have said without the break. A value that is not finite is a string.
            if not any(isinstance(value, str) for value in record.values()):
                self._alarms.check(record["step"], record)
        self._start: tuple[int, float] | None = None
        self._input_wait, self._pauses = 0.0, 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} views/s"),
            TextColumn("{task.fields[probe]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(
            "compiling", total=total_steps, completed=first_step, loss="–", speed="–", probe=""
        )

    def __enter__(self) -> "Telemetry":
        """Opens the log file and, on a terminal, shows the progress bar."""
        self._file = self._log_file.open("a", buffering=1)
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Removes the progress bar and closes the logs."""
        if self._console.is_terminal:
            self._progress.stop()
        # What could not be written, and was reported then, cannot be written now.
        with contextlib.suppress(OSError):
            self._file.close()
        for log in self._event_logs:
            log.close()

    def waited_for_input(self, seconds: float) -> None:
        """Adds to the time that the loop has spent waiting for a batch.

        Args:
            seconds: how long it waited.
        """
        self._input_wait += seconds

    def paused(self, seconds: float) -> None:
        """Leaves time that was not spent on training out of the speed.

        Args:
            seconds: how long the loop did something else.
        """
        self._pauses += seconds

    def record(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Shows and logs the metrics of a step.

        Args:
            step: the step that the metrics belong to.
            metrics: scalars, see `step.make_train_step`, `learning_rate`, and what the online probe found after the
                step, if it was due: `online_...`.

        Returns:
            The loss, its terms and statistics, and what the online probe found.

        Raises:
            NonFiniteError: if the run has halted, naming the terms that are not finite; the record is logged all the
                same.
            StorageError: if a log cannot be written.
        """
        values = {name: float(value) for name, value in sorted(metrics.items())}
        finite, halted = bool(values.pop("finite")), bool(values.pop("halted"))
        learning_rate = values.pop("learning_rate")
        # The clock starts after the first step, whose compilation would spoil the speed.
        now = time.monotonic() - self._pauses
        if self._start is None:
            self._start, self._input_wait = (step, now), 0.0
        start_step, start_time = self._start
        speed = self._views_per_step * (step - start_step) / (now - start_time) if step > start_step else None

        last = step + 1 == self._total_steps
        warnings, probe = [], _probe_text(values)
        if (step + 1) % self._every_steps == 0 or last or probe or not finite:
            warnings = self._alarms.check(step, values) if finite else []
            record = {
                "step": step,
                "epoch": round((step + 1) / self._steps_per_epoch, 4),
                "learning_rate": learning_rate,
                "views_per_second": speed and round(speed, 1),
                "input_wait": speed and round(self._input_wait / (now - start_time), 4),
                **{name: value if math.isfinite(value) else str(value) for name, value in values.items()},
                **({"warnings": warnings} if warnings else {}),
            }
            self._write(record)
            if not self._console.is_terminal:
                self._console.print(self._plain_line(step, values, speed, probe))
        self._progress.update(
            self._task,
            description="training",
            completed=step + 1,
            loss=f"{values['loss']:.4f}",
            speed=f"{speed:,.0f}" if speed else "–",
            **({"probe": probe} if probe else {}),
        )
        for warning in warnings:
            self._console.print(warning)
        if halted:
            raise NonFiniteError(step, _broken_terms(values))
        if not finite:
            broken = ", ".join(_broken_terms(values))
            self._console.print(f"step {step}: not finite: {broken}; skipped, {values['skipped']:.0f} so far")
        return values

    def _write(self, record: Mapping[str, Any]) -> None:
        with writing(self._log_file):
            self._file.write(json.dumps(record) + "\n")
        for log in self._event_logs:
            log.scalars(record["step"], tagged(record))

    def _plain_line(self, step: int, values: Mapping[str, float], speed: float | None, probe: str) -> str:
        line = f"step {step + 1:>{len(str(self._total_steps))}}/{self._total_steps}  loss {values['loss']:.4f}"
        if speed:
            left = (self._total_steps - step - 1) * self._views_per_step / speed
            line += f"  {speed:,.0f} views/s  {int(left // 60)}:{int(left % 60):02d} left"
        return f"{line}  {probe}" if probe else line


def _probe_text(values: Mapping[str, float]) -> str:
    """What the online probe found, such as "kNN@20 91.2 %  ridge 93.4 %"; nothing if it was not due."""
    found = {name.removeprefix("online_"): value for name, value in values.items() if name.startswith("online_")}
    return "  ".join(f"{name.replace('knn', 'kNN@')} {100 * value:.1f} %" for name, value in found.items())


def _broken_terms(values: Mapping[str, float]) -> list[str]:
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    terms = [name for name in values if not name.startswith((*CONSEQUENCES, *NO_TERMS))]
    broken_terms = [name for name in broken if name in terms]
    return ["every term"] if broken_terms == terms else broken_terms or broken or ["the updated parameters"]


def _drop_records_from(log_file: Path, first_step: int) -> list[dict[str, Any]]:
    """Keeps the records before a step, and returns them."""
    if not log_file.exists():
        return []
    lines = log_file.read_text().splitlines(keepends=True)
    whole = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
    kept = [(line, record) for line, record in whole if record["step"] < first_step]
    if len(kept) < len(lines):
        with replacing(log_file) as replacement:
            replacement.write_text("".join(line for line, _ in kept))
    return [record for _, record in kept]
