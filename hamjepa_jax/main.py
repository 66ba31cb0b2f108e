"""Pretrains and evaluates a joint-embedding predictive architecture.

    python -m hamjepa_jax.main --config=configs/digits.py
    python -m hamjepa_jax.main --config=configs/digits.py:sigreg --workdir=runs/mine --config.train.seed=1
    python -m hamjepa_jax.main --mode=evaluate --workdir=runs/mine
    python -m hamjepa_jax.main --mode=diagnose --workdir=runs/mine
    python -m hamjepa_jax.main --mode=report runs/mine runs/other
    python -m hamjepa_jax.main --mode=views --config=configs/cifar100.py --config.data.data_dir=DIR
    python -m hamjepa_jax.main --mode=embed --workdir=runs/mine --images=FOLDER --output=features.npz
    python -m hamjepa_jax.main --mode=neighbours --workdir=runs/mine --features=features.npz --query=cat.jpg
    python -m hamjepa_jax.main --mode=probe --workdir=runs/mine --train=FOLDER --test=FOLDER
    python -m hamjepa_jax.main --mode=theory
    python -m hamjepa_jax.main --mode=physics

Several processes, each with its own devices, make one run when each is told where process 0 listens. Under Slurm, Open
MPI and on TPU pods they find out by themselves; launch/ has a script for each.

    python -m hamjepa_jax.main --config=... --coordinator_address=HOST:PORT --num_processes=2 --process_id=0

Exit codes: 0 success, 1 values that are not finite or a statement of the theory that does not hold, 2 a mistake in the
command or the config, 3 a checkpoint, a log or a result cannot be written, 4 another process was lost or never came,
130 stopped by Ctrl-C, 143 by SIGTERM or a preemption notice. A run that ended early goes on where it was when the same
command is given again.
"""

import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from hamjepa_jax.command_line import parse_flags
from hamjepa_jax.errors import DisprovedError, Interrupted, LostProcessError, NonFiniteError, StorageError, UserError
from hamjepa_jax.inference import command_line as inference

if TYPE_CHECKING:
    from hamjepa_jax.build import Experiment
    from hamjepa_jax.state import TrainState
    from hamjepa_jax.train import Setup
    from hamjepa_jax.workdir import Workdir

HELP_FLAGS = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
# These need neither config nor run.
OF_THEIR_OWN = ("theory", "physics")
MODES = ("train_and_evaluate", "train", "evaluate", "diagnose", "report", "views", *inference.MODES, *OF_THEIR_OWN)
# These are of a run that is there.
OF_A_RUN = ("evaluate", "diagnose")

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="The experiment, PATH[:VARIANT]; any field is set with --config.GROUP.FIELD=VALUE."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything of the run goes; runs/NAME-VARIANT-seedSEED by default."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train_and_evaluate",
    MODES,
    "What to do. `evaluate` and `diagnose` judge the encoder and the predictor of a run; `report` makes a page of one "
    "or several runs, named by their directories; `views` draws what the encoder would see, and trains nothing. "
    "`embed`, `neighbours` and `probe` use the model of a run on images of one's own. "
    "`theory` checks the statements of the paper, and `physics` shows what integrators conserve; both into --workdir, "
    "runs/theory and runs/physics by default.",
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT at which process 0 of several listens."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")


def run(console: Console, directories: Sequence[str] = ()) -> None:
    """Does what the flags say.

    Args:
        console: where progress and results are shown.
        directories: those of the runs that a report is about.

    Raises:
        UserError: for a mistake in the flags or the config, before anything is written.
    """
    if _MODE.value == "report":
        _report([Path(directory) for directory in directories or filter(None, [_WORKDIR.value])], console)
        return
    if directories:
        raise UserError(f"{directories[0]}: not a flag; flags begin with --, see --help")
    if _MODE.value in inference.MODES:
        inference.run(_MODE.value, _WORKDIR.value, console)
        return
    from hamjepa_jax import build, distributed, environment, sharding, train
    from hamjepa_jax.evaluation.run import check
    from hamjepa_jax.workdir import Workdir

    environment.compute_in_the_calling_thread()
    environment.keep_compiled_programs()
    if _MODE.value in OF_THEIR_OWN:
        _show_what_is_known(console)
        return
    distributed.start(
        coordinator_address=_COORDINATOR_ADDRESS.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
    )
    console.quiet = not distributed.is_primary()
    mode = _MODE.value
    config = _read_config()
    workdir = Workdir(_workdir_path(config))
    experiment = build.experiment(config)
    if mode == "views":
        _draw_views(config, experiment, workdir, console)
        console.print(f"written: {workdir.views_file}")
        return
    check(config, experiment)
    setup = train.set_up(config, experiment)
    if mode in OF_A_RUN:
        distributed.on_primary(lambda: workdir.check(json.loads(config.to_json())))
        experiment = train.with_data_in_memory(config, experiment, console)
        state = train.restore(config, setup, workdir, console)
    else:
        # Where a run is only judged, options of the accelerator that it was trained on may be unknown.
        environment.compiler_options(config.train.compiler_options)
        distributed.on_primary(lambda: workdir.claim(json.loads(config.to_json())))
        console.print(f"{config.name} {config.variant}, seed {config.train.seed}, into {workdir.path}")
        console.print(sharding.description(setup.mesh))
        experiment = train.with_data_in_memory(config, experiment, console)
        # They are a part of the report.
        if mode != "train" and not workdir.views_file.exists():
            _draw_views(config, experiment, workdir, console)
        state = train.train(config, experiment, setup, workdir, console)
    if mode != "train":
        _judge(config, experiment, setup, state, workdir, console)


def _show_what_is_known(console: Console) -> None:
    """Checks the theory, or draws the gallery of mechanical systems."""
    from hamjepa_jax.physics.run import run as run_physics
    from hamjepa_jax.theory.run import run as run_theory

    if _CONFIG.value is not None:
        raise UserError(f"--config: --mode={_MODE.value} needs none, and would not heed it; leave it out")
    run_mode = {"theory": run_theory, "physics": run_physics}[_MODE.value]
    run_mode(_directory(_WORKDIR.value or f"runs/{_MODE.value}"), console)


def _judge(
    config: ConfigDict,
    experiment: "Experiment",
    setup: "Setup",
    state: "TrainState",
    workdir: "Workdir",
    console: Console,
) -> None:
    """Judges the encoder and the predictor of a run, and makes the report."""
    from hamjepa_jax import build_monitoring, distributed, sharding
    from hamjepa_jax.evaluation import world_model_run
    from hamjepa_jax.evaluation.diagnose import can_diagnose, diagnose
    from hamjepa_jax.evaluation.run import evaluate

    def on_one_device(placed: "TrainState") -> "TrainState":
        return sharding.whole_on_one_device(placed._replace(opt_state=()), setup.mesh)

    trained = on_one_device(state)
    if _MODE.value != "diagnose":
        untrained = on_one_device(setup.initialize(setup.key))
        evaluate(config, experiment, trained, untrained, directory=workdir.evaluation, console=console)
        summary = workdir.evaluation / "summary.png"
        build_monitoring.log_picture(config, workdir, step=int(trained.step), tag="evaluation/summary", path=summary)
        console.print(f"written: {workdir.evaluation}/metrics.json and summary.png")
    if _MODE.value == "diagnose" or can_diagnose(config):
        diagnose(config, experiment, trained, directory=workdir.evaluation, console=console)
        console.print(f"written: {workdir.evaluation}/diagnostics.json")
    if world_model_run.can_judge(config, experiment):
        world_model_run.judge(config, experiment, trained, directory=workdir.evaluation, console=console)
        console.print(f"written: {workdir.evaluation}/world_model.json and world_model.png")
    if distributed.is_primary():
        _report([workdir.path], console)


def _report(directories: Sequence[Path], console: Console) -> None:
    """Makes the page of one run, in its directory, or of several, in the directory that holds them."""
    from hamjepa_jax.report.page import write_report

    if not directories:
        raise UserError("--mode=report: name the directories of one or several runs, such as runs/mine runs/other")
    parents = [directory.resolve().parent for directory in directories]
    path = (directories[0] if len(directories) == 1 else Path(os.path.commonpath(parents))) / "report.html"
    write_report(directories, path)
    console.print(f"written: {path}")


def _draw_views(config: ConfigDict, experiment: "Experiment", workdir: "Workdir", console: Console) -> None:
    from hamjepa_jax import build_data, contact_sheet, distributed

    if not distributed.is_primary():
        return
    contact_sheet.draw(
        experiment.train_source,
        experiment.view_groups,
        build_data.loader(config.data, experiment.train_source, seed=config.train.seed),
        build_data.skipped_records(config.data, console),
        batch_size=config.data.batch_size,
        seed=config.train.seed,
        title=f"{config.name} {config.variant}, seed {config.train.seed}",
        path=workdir.views_file,
    )


def _read_config() -> ConfigDict:
    from hamjepa_jax.workdir import Workdir

    if _CONFIG.value is not None:
        return _CONFIG.value
    if _WORKDIR.value:
        workdir = Workdir(Path(_WORKDIR.value))
        # A run that is there goes on by its own config.
        if _MODE.value in OF_A_RUN or workdir.config_file.exists():
            return ConfigDict(workdir.read_config_file())
    raise UserError(
        "--config: missing; name an experiment, such as --config=configs/digits.py, or the --workdir of a run"
    )


def _workdir_path(config: ConfigDict) -> Path:
    return _directory(_WORKDIR.value or f"runs/{config.name}-{config.variant}-seed{config.train.seed}")


def _directory(path: str) -> Path:
    if "://" in path:
        raise UserError(
            f"--workdir={path}: must be a directory; mount the bucket, with gcsfuse for gs://, and name the mount point"
        )
    return Path(path)


def main(arguments: Sequence[str] = sys.argv) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: the program's name and its arguments.

    Returns:
        The exit code, see the module's docstring. One of several processes whose run has failed does not return.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if HELP_FLAGS.intersection(arguments[1:]):
        told = "\n".join(flags.FLAGS.module_help(module) for module in (sys.modules[__name__], inference))
        print(f"{__doc__}\nFlags:\n{told}")
        return 0
    command = f"python -m hamjepa_jax.main {shlex.join(arguments[1:])}"
    try:
        directories = parse_flags(arguments)[1:]
    except UserError as error:
        return explain(error, command)
    from hamjepa_jax import distributed

    try:
        run(console, directories)
    except (Exception, KeyboardInterrupt) as error:
        exit_code = explain(error, command)
        distributed.leave(exit_code)
        return exit_code
    return 0


def explain(error: BaseException, command: str) -> int:
    """Says in one line on standard error why the program ends; only what nobody expected gets a traceback.

    Args:
        error: what ended it.
        command: the command, which goes on where the run was.

    Returns:
        The exit code.
    """
    from hamjepa_jax import distributed

    again = f"to go on, give the same command again: {command}"
    if isinstance(error, UserError):
        line, exit_code = f"error: {error}", 2
    elif isinstance(error, NonFiniteError):
        line, exit_code = f"error: {error}; the last good state is saved; lower config.optimizer.learning_rate", 1
    elif isinstance(error, DisprovedError):
        line, exit_code = f"error: {error}", 1
    elif isinstance(error, StorageError):
        line, exit_code = f"error: {error}", 3
    elif isinstance(error, Interrupted):
        line, exit_code = f"{error}, which is saved; {again}", 128 + error.signal_number
    elif isinstance(error, KeyboardInterrupt):
        line, exit_code = f"interrupted; {again}", 128 + signal.SIGINT
    elif isinstance(error, LostProcessError):
        line, exit_code = f"error: {error}", 4
    elif distributed.lost_process(error):
        line, exit_code = f"error: another process of the run was lost ({str(error).splitlines()[0]}); {again}", 4
    else:
        line, exit_code = "".join(traceback.format_exception(error)).rstrip(), 1
    print(line, file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
