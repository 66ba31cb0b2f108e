"""Runs a grid of variants and seeds, and tells what came of it.

    python -m hamjepa_jax.experiments --grid=predictor_x_regulariser --config=configs/digits.py
    python -m hamjepa_jax.experiments --grid=paper_table --config=configs/cifar100.py --seeds=5 --list
    python -m hamjepa_jax.experiments --grid=paper_table --config=configs/cifar100.py --config.data.data_dir=DIR
    python -m hamjepa_jax.experiments --reproduction=cifar100_scaled_down --config.data.data_dir=DIR

Every run is a command of hamjepa_jax.main, which --list prints; --config.GROUP.FIELD=VALUE goes to all of them. What is
done is skipped, and a run that was stopped goes on where it was. As an array job each task makes one run, --task=N; see
launch/experiments.sbatch. Tables, a picture and every number are written at the end, or by --collect at any time, to
--output, or to --results with a record of every run.

A reproduction is a grid with its config and what the paper claims of it. What came of every claim goes to --page,
docs/reproduction.md.

Exit codes: 0 success, 1 a run has failed, 2 a mistake in the command, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hamjepa_jax.errors import UserError
from hamjepa_jax.experiments import report, reproduction
from hamjepa_jax.experiments.collect import collect, measured
from hamjepa_jax.experiments.grids import GRIDS, Grid
from hamjepa_jax.experiments.records import keep
from hamjepa_jax.experiments.reproductions import REPRODUCTIONS
from hamjepa_jax.experiments.runs import Run, Runner, check_commands, number_at_once, runs_of

DEFAULT_SEEDS = 3
HELP_FLAGS = {"--help", "-help", "-h", "--helpshort", "--helpfull"}

FLAGS = flags.FlagValues()
flags.DEFINE_string("grid", None, f"The grid: {', '.join(GRIDS)}.", FLAGS)
flags.DEFINE_string("config", None, "The config file; the grid names the variants.", FLAGS)
flags.DEFINE_string("reproduction", None, f"Instead of both: {', '.join(REPRODUCTIONS)}.", FLAGS)
flags.DEFINE_integer(
    "seeds", None, "Number of seeds, from 0; 3 or the reproduction's own by default.", 1, flag_values=FLAGS
)
flags.DEFINE_string("output", None, "Where everything goes; runs/GRID-CONFIG by default.", FLAGS)
flags.DEFINE_string(
    "results",
    None,
    "Where tables go, and a record of every run, which outlives its directory; for a reproduction "
    "results/REPRODUCTION by default.",
    FLAGS,
)
flags.DEFINE_string("page", "docs/reproduction.md", "The page with a section on each reproduction.", FLAGS)
flags.DEFINE_string("reference", None, "The row that others are compared with; the grid's own by default.", FLAGS)
flags.DEFINE_integer(
    "at_once",
    None,
    "Runs at once; by default one for each core, or one if there is an accelerator.",
    1,
    flag_values=FLAGS,
)
flags.DEFINE_integer("task", None, "Makes one run, the one of this number in --list.", 0, flag_values=FLAGS)
flags.DEFINE_boolean("list", False, "Prints the runs and their commands, and ends.", FLAGS)
flags.DEFINE_boolean("collect", False, "Makes no run; collects what is done.", FLAGS)
flags.DEFINE_boolean("runs_only", False, "Collects nothing, as on each machine of a pod.", FLAGS)


def run(overrides: Sequence[str], console: Console) -> int:
    """Does what the flags say.

    Args:
        overrides: arguments --config.GROUP.FIELD=VALUE for every run.
        console: where progress and results are shown.

    Returns:
        The exit code.

    Raises:
        UserError: for a mistake in the flags, before anything is written.
        KeyboardInterrupt: on a signal, after the runs have saved their states.
    """
    _take_reproduction()
    grid, output, reference = _grid(), _output(), _reference()
    seeds = FLAGS.seeds or DEFAULT_SEEDS
    runs = runs_of(grid, config=FLAGS.config, seeds=seeds, output=output, overrides=overrides)
    if FLAGS.list:
        for number, one in enumerate(runs):
            console.print(f"{number:>3}  {'done' if one.is_done() else '    '}  {shlex.join(one.command)}")
        return 0
    check_commands(runs)
    exit_code = 0
    if not FLAGS.collect:
        exit_code = _make(_chosen(runs), output, console)
    if FLAGS.task is None and not FLAGS.runs_only:
        _collect(grid, runs, reference, output, console)
    return exit_code


def _take_reproduction() -> None:
    """Has the flags say what the reproduction does."""
    name = FLAGS.reproduction
    if name is None:
        return
    if name not in REPRODUCTIONS:
        raise UserError(f"--reproduction={name}: unknown; known: {', '.join(REPRODUCTIONS)}")
    for flag in ("grid", "config"):
        if FLAGS[flag].value is not None:
            raise UserError(f"--{flag}={FLAGS[flag].value}: --reproduction={name} has its own; give one of the two")
    FLAGS.grid, FLAGS.config = REPRODUCTIONS[name].grid, f"configs/{name}.py"
    FLAGS.seeds = FLAGS.seeds or REPRODUCTIONS[name].seeds
    FLAGS.output = FLAGS.output or f"runs/reproduce/{name}"
    FLAGS.results = FLAGS.results or f"results/{name}"


def _grid() -> Grid:
    if FLAGS.grid not in GRIDS:
        raise UserError(f"--grid={FLAGS.grid or ''}: unknown; known: {', '.join(GRIDS)}")
    return GRIDS[FLAGS.grid]


def _output() -> Path:
    config = FLAGS.config
    if not config or not Path(config).is_file():
        raise UserError(
            f"--config={config or ''}: there is no such file; the configs are in configs/*.py, and the grid names the "
            "variants"
        )
    return Path(FLAGS.output or f"runs/{FLAGS.grid}-{Path(config).stem}")


def _reference() -> str:
    reference, labels = FLAGS.reference or _grid().reference, [cell.label for cell in _grid().cells]
    if reference not in labels:
        raise UserError(f"--reference={reference}: is no row of the grid; its rows: {', '.join(labels)}")
    return reference


def _chosen(runs: list[Run]) -> list[Run]:
    if FLAGS.task is None:
        return runs
    if FLAGS.task >= len(runs):
        raise UserError(f"--task={FLAGS.task}: must be below the {len(runs)} runs of the grid, see --list")
    return [runs[FLAGS.task]]


def _make(runs: list[Run], output: Path, console: Console) -> int:
    waiting = [one for one in runs if not one.is_done()]
    if not waiting:
        console.print(f"all {len(runs)} runs are done")
        return 0
    # Seeds differ in nothing that is compiled.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(output.resolve() / "compilation_cache")
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    at_once = min(FLAGS.at_once or number_at_once(environment), len(waiting))
    console.print(f"{len(waiting)} of {len(runs)} runs to make, {at_once} at once, into {output}")
    start, done = time.monotonic(), 0
    columns = (TextColumn("runs"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("runs", total=len(waiting))

        def finished(one: Run, seconds: float) -> None:
            nonlocal done
            done += 1
            left = (time.monotonic() - start) / done * (len(waiting) - done) / 60
            console.print(f"{done} of {len(waiting)}: {one.name}: {seconds:.0f} s; about {left:.0f} min left")
            progress.update(bar, completed=done)

        failures = Runner(at_once=at_once, environment=environment, finished=finished).make(waiting)
    for failure in failures:
        what = "not made" if failure.exit_code is None else f"exit code {failure.exit_code}"
        console.print(f"failed: {failure.run.name}: {what}: {failure.reason} (all of it: {failure.run.log_file})")
    return 1 if failures else 0


def _collect(grid: Grid, runs: list[Run], reference: str, output: Path, console: Console) -> None:
    title = f"{FLAGS.grid}, {Path(FLAGS.config).stem}"
    if FLAGS.reproduction is None:
        results = Path(FLAGS.results) if FLAGS.results else None
        table = collect(grid, runs, keep(runs, results) if results else measured(runs), reference=reference)
        files = report.write(table, runs, results or output, title=title) if table.metrics else []
    else:
        name, page = FLAGS.reproduction, Path(FLAGS.page)
        table, files = reproduction.write(
            name, REPRODUCTIONS[name], runs, reference=reference, results=Path(FLAGS.results), page=page
        )
    if not table.metrics:
        console.print("no run is done, and there is nothing to collect")
        return
    report.print_table(table, console, title=title)
    for file in files:
        console.print(f"written: {file}")


def main(arguments: Sequence[str] = sys.argv) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: the program's name and its arguments.

    Returns:
        The exit code, see the module's docstring.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if HELP_FLAGS.intersection(arguments[1:]):
        print(f"{__doc__}\nFlags:\n{FLAGS.get_help(include_special_flags=False)}")
        return 0
    overrides = [argument for argument in arguments[1:] if re.match(r"--(no)?config\.", argument)]
    try:
        try:
            FLAGS.unparse_flags()
            rest = FLAGS([argument for argument in arguments if argument not in overrides])[1:]
        except flags.Error as error:
            raise UserError(" ".join(str(error).split())) from None
        if rest:
            raise UserError(f"{rest[0]}: not a flag; flags begin with --, see --help")
        return run(overrides, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        number = stopped.args[0] if stopped.args else signal.SIGINT
        command = shlex.join(["python", "-m", "hamjepa_jax.experiments", *arguments[1:]])
        print(f"stopped; to go on, give the same command again: {command}", file=sys.stderr)
        return 128 + number


if __name__ == "__main__":
    sys.exit(main())
