"""The flags of the command line: a mistake is told in one line, before anything is done."""

import re
import runpy
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from hamjepa_jax.errors import UserError

# A flag that sets a field of the config.
FIELD = re.compile(r"--?(?:no)?config\.([^=]+)")


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses the command line; a mistake is reported in one line that names the flag.

    Args:
        arguments: the program's name and its arguments.

    Returns:
        The program's name and the arguments that are not flags.

    Raises:
        UserError: for an unknown flag or key, a field without a config, a value of another type, or a config that
            cannot be loaded.
    """
    config_at = [i for i, argument in enumerate(arguments) if re.fullmatch(r"--?config(=.*)?", argument)]
    if config_at:
        _, equals, path = arguments[config_at[-1]].partition("=")
        if equals or config_at[-1] + 1 < len(arguments):
            config = load_config(path if equals else arguments[config_at[-1] + 1])
            for argument in arguments[1:]:
                if match := FIELD.match(argument):
                    check_key(config, match.group(1))
    elif fields := [argument for argument in arguments[1:] if FIELD.match(argument)]:
        raise UserError(
            f"{fields[0]}: sets a field of a config, which has to be named: give --config=PATH[:VARIANT] too"
        )
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
