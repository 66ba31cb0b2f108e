"""What the programs of this folder share: mistakes are one line, and exit codes say what kind they are."""

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from hamjepa_jax.errors import StorageError, UserError


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        """Raises a UserError."""
        raise UserError(f"{message}; see {self.prog} --help")


def parser(module: str, description: str) -> Parser:
    """A parser.

    Args:
        module: the module that is run.
        description: what --help shows, the docstring of the module.

    Returns:
        The parser, to which a program adds its options.
    """
    return Parser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run(work: Callable[[], Iterable[str]]) -> int:
    """Does the work of a program.

    Args:
        work: does it, and gives what there is to say, a line each.

    Returns:
        The exit code: 0, 2 for a mistake of the user, 3 for a file that cannot be written.
    """
    try:
        for line in work():
            print(line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0
