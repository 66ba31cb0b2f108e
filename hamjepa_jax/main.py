"""Pretrains and evaluates a joint-embedding predictive architecture.

    python -m hamjepa_jax.main --config=configs/digits.py
    python -m hamjepa_jax.main --config=configs/digits.py:sigreg --workdir=runs/mine --config.train.seed=1
    python -m hamjepa_jax.main --mode=evaluate --workdir=runs/mine
    python -m hamjepa_jax.main --mode=views --config=configs/cifar100.py --config.data.data_dir=DIR

Exit codes: 0 success, 1 a loss or gradient that is not finite, 2 a mistake in the command or the config, 130 stopped by
Ctrl-C, 143 by SIGTERM. A stopped run goes on where it was when the same command is given again.
"""

import json
import re
import runpy
import shlex
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from hamjepa_jax.errors import Interrupted, NonFiniteError, UserError

HELP_FLAGS = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
MODES = ("train_and_evaluate", "train", "evaluate", "views")

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="The experiment, PATH[:VARIANT]; any field is set with --config.GROUP.FIELD=VALUE."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything of the run goes; runs/NAME-VARIANT-seedSEED by default."
)
_MODE = flags.DEFINE_enum(
    "mode", "train_and_evaluate", MODES, "What to do; `views` draws what the encoder would see, and trains nothing."
)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses the command line; a mistake is reported in one line that names the flag.

    Args:
        arguments: the program's name and its arguments.

    Returns:
        The program's name and the arguments that are not flags.

    Raises:
        UserError: for an unknown flag or key, a value of another type, or a config that cannot be loaded.
    """
    config_at = [i for i, argument in enumerate(arguments) if re.fullmatch(r"--?config(=.*)?", argument)]
    if config_at:
        _, equals, path = arguments[config_at[-1]].partition("=")
        if equals or config_at[-1] + 1 < len(arguments):
            config = load_config(path if equals else arguments[config_at[-1] + 1])
            for argument in arguments[1:]:
                if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
                    check_key(config, match.group(1))
    try:
        return flags.FLAGS(list(arguments))
    except flags.Error as error:
        raise UserError(_illegal_value(str(error))) from None


def load_config(path_and_variant: str) -> ConfigDict:
    """Runs `get_config` of a config file, only to find mistakes before the flags are parsed.

    Args:
        path_and_variant: PATH or PATH:VARIANT.

    Returns:
        The config without the overrides of the command line.

    Raises:
        UserError: if there is no such file, it is not a config, or it refuses the variant.
    """
    path, colon, variant = path_and_variant.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--config={path_and_variant}: there is no file {path!r}; the experiments are in configs/*.py")
    try:
        get_config = runpy.run_path(path)["get_config"]
        return get_config(variant) if colon else get_config()
    except KeyError:
        raise UserError(f"--config={path_and_variant}: the file has no function get_config") from None
    except Exception as error:
        raise UserError(f"--config={path_and_variant}: {error}") from None


def check_key(config: ConfigDict, key: str) -> None:
    """Makes sure that a field exists.

    Args:
        config: the config.
        key: GROUP.FIELD.

    Raises:
        UserError: naming the known fields, if it does not, or if it is a group of fields.
    """
    node, path = config, "config"
    for part in key.split("."):
        known = list(node.keys()) if isinstance(node, ConfigDict) else []
        if part not in known:
            close = get_close_matches(part, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"config.{key}: unknown key; {hint}known in {path}: {', '.join(known) or 'nothing'}")
        node, path = node[part], f"{path}.{part}"
    if isinstance(node, ConfigDict):
        raise UserError(f"config.{key}: is a group; set one of its fields: {', '.join(node.keys())}")


def _illegal_value(message: str) -> str:
    """Turns absl's message about a flag into one line that says what is allowed."""
    match = re.match(r"flag --(config\.[^=]+)=(.*?): ", message, re.DOTALL)
    if match is None:
        return " ".join(message.split())
    key, value = match.groups()
    flag = flags.FLAGS[key]
    example = "" if flag.default is None else f", such as {flag.default}"
    return f"{key}: must be of type {flag.flag_type()}{example}, got {value!r}"


def run(console: Console) -> None:
    """Does what the flags say.

    Args:
        console: where progress and results are shown.

    Raises:
        UserError: for a mistake in the flags or the config, before anything is written.
    """
    from hamjepa_jax import build, build_data, contact_sheet, train
    from hamjepa_jax.evaluation.run import check, evaluate
    from hamjepa_jax.workdir import Workdir

    mode = _MODE.value
    if mode == "evaluate" and _CONFIG.value is None and _WORKDIR.value:
        config = ConfigDict(Workdir(Path(_WORKDIR.value)).read_config_file())
    elif _CONFIG.value is None:
        raise UserError("--config: missing; name an experiment, such as --config=configs/digits.py")
    else:
        config = _CONFIG.value
    default_path = Path("runs") / f"{config.name}-{config.variant}-seed{config.train.seed}"
    workdir = Workdir(Path(_WORKDIR.value) if _WORKDIR.value else default_path)
    experiment = build.experiment(config)
    if mode == "views":
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
        console.print(f"written: {workdir.views_file}")
        return
    check(config, experiment)
    setup = train.set_up(config, experiment)
    if mode == "evaluate":
        workdir.check(json.loads(config.to_json()))
        experiment = train.with_data_in_memory(config, experiment, console)
        state = train.restore(config, setup, workdir)
    else:
        workdir.claim(json.loads(config.to_json()))
        console.print(f"{config.name} {config.variant}, seed {config.train.seed}, into {workdir.path}")
        experiment = train.with_data_in_memory(config, experiment, console)
        state = train.train(config, experiment, setup, workdir, console)
    if mode != "train":
        untrained = setup.initialize(setup.key)
        evaluate(config, experiment, state, untrained, directory=workdir.evaluation, console=console)
        console.print(f"written: {workdir.evaluation}/metrics.json and summary.png")


def main(arguments: Sequence[str] = sys.argv) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: the program's name and its arguments.

    Returns:
        The exit code, see the module's docstring.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    again = f"to go on, give the same command again: python -m hamjepa_jax.main {shlex.join(arguments[1:])}"
    if HELP_FLAGS.intersection(arguments[1:]):
        print(f"{__doc__}\nFlags:\n{flags.FLAGS.module_help(sys.modules[__name__])}")
        return 0
    try:
        positional = parse_flags(arguments)[1:]
        if positional:
            raise UserError(f"{positional[0]}: not a flag; flags begin with --, see --help")
        run(console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(
            f"error: {error}; the last good state is saved; lower config.optimizer.learning_rate",
            file=sys.stderr,
        )
        return 1
    except Interrupted as error:
        print(f"{error}, which is saved; {again}", file=sys.stderr)
        return 128 + error.signal_number
    except KeyboardInterrupt:
        print(f"interrupted; {again}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
