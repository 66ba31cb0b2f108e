"""What the scripts share: the command line, and how results are written."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hamjepa_jax import environment


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the option --json.

    Args:
        description: what --help shows, the docstring of the script.

    Returns:
        The parser, to which a script adds its own options.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="where everything that was measured is written")
    return made


def write_json(path: Path | None, results: Mapping[str, Any]) -> None:
    """Writes what was measured, and where it was measured.

    Args:
        path: the file, whose directories are made; None: nothing is written.
        results: goes beside "environment" in the file.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment.describe(), **results}, indent=1) + "\n")


def timing_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of a script that times functions.

    Args:
        description: what --help shows, the docstring of the script.

    Returns:
        The parser, with --json, --repeats and --cores.
    """
    made = parser(description)
    made.add_argument("--repeats", type=positive, default=10, help="how often each function is timed (default: 10)")
    made.add_argument("--cores", type=positive, default=2, help="cores of the CPU that are used (default: 2)")
    return made


def positive(text: str) -> int:
    """A number of the command line that counts something.

    Args:
        text: what was given.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: if it is not a positive whole number.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)
