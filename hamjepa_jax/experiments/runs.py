"""The runs of a grid: their commands, which of them are done, and how they are made."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hamjepa_jax.errors import UserError
from hamjepa_jax.experiments.grids import Cell, Grid

POLL_SECONDS = 0.1
USER_ERROR = 2


class Run(NamedTuple):
    """A cell with a seed.

    Attributes:
        cell: the cell.
        seed: the seed.
        workdir: the directory of the run; its log and the record of its command lie beside it.
        arguments: arguments of hamjepa_jax.main.
    """

    cell: Cell
    seed: int
    workdir: Path
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the run is called."""
        return f"{self.cell.label}, seed {self.seed}"

    @property
    def log_file(self) -> Path:
        """Where everything goes that the run says."""
        return self.workdir.with_suffix(".log")

    @property
    def command_file(self) -> Path:
        """The arguments that the run was made with."""
        return self.workdir.with_suffix(".json")

    @property
    def metrics_file(self) -> Path:
        """What a run that is done has written."""
        return self.workdir / "evaluation" / "metrics.json"

    @property
    def times_file(self) -> Path:
        """When each of its processes began and ended, in seconds since the epoch, a line for each."""
        return self.workdir.with_suffix(".times")

    @property
    def command(self) -> list[str]:
        """The command that a user would type."""
        return ["python", "-m", "hamjepa_jax.main", *self.arguments]

    def is_done(self) -> bool:
        """Whether the run has been evaluated."""
        return self.metrics_file.exists()

    def wall_seconds(self) -> float | None:
        """How long any process of the run was going on, on whatever machine; None if that is not known."""
        if not self.times_file.exists():
            return None
        total, until = 0.0, -math.inf
        for begin, end in sorted(tuple(map(float, line.split())) for line in self.times_file.read_text().splitlines()):
            total += max(end - max(begin, until), 0.0)
            until = max(until, end)
        return total


class Failure(NamedTuple):
    """A run that has failed.

    Attributes:
        run: the run.
        exit_code: its exit code, or None if it was not tried, because another seed of its cell was refused.
        reason: the last line that it wrote.
    """

    run: Run
    exit_code: int | None
    reason: str


def runs_of(grid: Grid, *, config: str, seeds: int, output: Path, overrides: Sequence[str]) -> list[Run]:
    """All runs of a grid, seed by seed, so that a grid that is stopped half-way has fewer seeds and not fewer rows.

    Args:
        grid: the grid.
        config: path of the config file.
        seeds: number of seeds, from 0.
        output: where the runs go.
        overrides: arguments --config.GROUP.FIELD=VALUE for every run; a cell's own come after them.

    Returns:
        The runs.
    """
    runs = []
    for seed in range(seeds):
        for cell in grid.cells:
            workdir = output / cell.label / f"seed{seed}"
            own = [f"--config.{key}={value}" for key, value in cell.overrides.items()]
            arguments = (
                f"--config={config}:{cell.variant}",
                *overrides,
                *own,
                f"--config.train.seed={seed}",
                f"--workdir={workdir}",
            )
            runs.append(Run(cell, seed, workdir, arguments))
    return runs


def check_commands(runs: Sequence[Run]) -> None:
    """Makes sure that what lies in the directories of the runs was made by their commands.

    Args:
        runs: the runs.

    Raises:
        UserError: naming the first run that was made by another command, and what differs.
    """
    for run in runs:
        if not run.command_file.exists():
            continue
        before = json.loads(run.command_file.read_text())
        differing = sorted(set(before) ^ set(run.arguments))
        if differing:
            raise UserError(
                f"--output: {run.name} was begun with another command: {' '.join(differing)} differs; take another "
                f"--output, or remove {run.workdir.parent}"
            )


def number_at_once(environment: dict[str, str]) -> int:
    """How many runs are to be made at once: one for each core where there is no accelerator, else one.

    A run of a small data set hardly uses two cores.

    Args:
        environment: that of the runs.

    Returns:
        The number.
    """
    ask = "import jax; print(jax.default_backend())"
    answer = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True)
    return len(_own_cores()) if answer.stdout.strip() == "cpu" else 1


def _own_cores() -> list[int]:
    # Not every system lets a process choose its cores.
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _keep_to(cores: Sequence[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


class Runner:
    """Makes runs, several at once, each on its share of the cores."""

    def __init__(self, *, at_once: int, environment: dict[str, str], finished: Callable[[Run, float], None]):
        """Keeps the arguments.

        Args:
            at_once: number of runs at once.
            environment: that of the runs.
            finished: is told of every run that is done, and how many seconds it took.
        """
        self._environment, self._finished = environment, finished
        self._cores = _own_cores()
        self._shares = [self._cores[i::at_once] or self._cores for i in range(at_once)]
        self._going: dict[int, tuple[Run, subprocess.Popen, float]] = {}
        self._failures: list[Failure] = []
        self._signal: int | None = None

    def make(self, runs: Sequence[Run]) -> list[Failure]:
        """Makes all runs; one that fails does not keep the others from being made.

        Args:
            runs: the runs.

        Returns:
            Those that have failed.

        Raises:
            KeyboardInterrupt: on SIGINT or SIGTERM, whose number it holds, after the runs have saved their states.
        """
        waiting = list(runs)
        with self._listening():
            while waiting or self._going:
                while waiting and self._signal is None and (free := set(range(len(self._shares))) - set(self._going)):
                    self._start(waiting.pop(0), min(free))
                self._collect_finished(waiting)
                if self._signal is not None and not self._going:
                    raise KeyboardInterrupt(self._signal)
                time.sleep(POLL_SECONDS)
        return self._failures

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Hands signals on to the runs, which save their states and end."""

        def hand_on(number: int, frame: Any) -> None:
            del frame
            self._signal = number
            for _, process, _ in self._going.values():
                process.send_signal(number)

        before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, run: Run, slot: int) -> None:
        if any(failure.run.cell == run.cell and failure.exit_code == USER_ERROR for failure in self._failures):
            self._failures.append(Failure(run, None, "not tried, because its first seed was refused"))
            return
        run.workdir.parent.mkdir(parents=True, exist_ok=True)
        run.command_file.write_text(json.dumps(run.arguments, indent=1) + "\n")
        # A process inherits the cores of the thread that starts it. In a session of its own, it hears of Ctrl-C from
        # here alone.
        _keep_to(self._shares[slot])
        try:
            with run.log_file.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, *run.command[1:]],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                )
        finally:
            _keep_to(self._cores)
        self._going[slot] = (run, process, time.time())

    def _collect_finished(self, waiting: list[Run]) -> None:
        for slot, (run, process, start) in list(self._going.items()):
            exit_code = process.poll()
            if exit_code is None:
                continue
            del self._going[slot]
            end = time.time()
            with run.times_file.open("a") as file:
                file.write(f"{start:.1f} {end:.1f}\n")
            if exit_code == 0:
                self._finished(run, end - start)
            elif self._signal is None:
                self._failures.append(Failure(run, exit_code, _last_line(run.log_file)))


def _last_line(log_file: Path) -> str:
    lines = [line for line in log_file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
