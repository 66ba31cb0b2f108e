"""How a run can end before its time: a mistake, values that are not finite, no space to write, a request to stop."""

import os
import re
from collections.abc import Collection


class UserError(Exception):
    """What is wrong, where (the config key, the file), what is allowed, what to do: one line, no traceback."""


class NonFiniteError(Exception):
    """A loss or gradient that is not finite.

    Attributes:
        step: the step in which it appeared.
        terms: the names of the metrics that are not finite.
    """

    def __init__(self, step: int, terms: list[str]):
        """Keeps the step and the terms, which the message names."""
        super().__init__(f"step {step}: not finite: {', '.join(terms)}")
        self.step, self.terms = step, terms


class StorageError(Exception):
    """What the run should have written could not be written, and why; what was written before is intact."""


class LostProcessError(Exception):
    """The other processes of the run are not there."""


class DisprovedError(Exception):
    """Statements of the theory that do not hold in numbers, and which."""


class Interrupted(Exception):
    """The run was asked to stop, and its state is saved.

    Attributes:
        step: the number of steps made.
        signal_number: the signal that asked for it, or that stands for what did.
    """

    def __init__(self, step: int, signal_number: int, reason: str):
        """Keeps the step and the signal; the message says why."""
        super().__init__(f"stopped by {reason} after step {step}")
        self.step, self.signal_number = step, signal_number


def require(condition: bool, key: str, problem: str) -> None:
    """Raises a UserError that names the config key if the condition does not hold.

    Args:
        condition: what must be true.
        key: the config key at fault, without the leading `config.`.
        problem: what is allowed and what was found.

    Raises:
        UserError: if the condition is false.
    """
    if not condition:
        raise UserError(f"config.{key}: {problem}")


def require_known(name: str, known: Collection[str], key: str) -> None:
    """Raises a UserError that lists the known names if `name` is not among them.

    Args:
        name: the name that the config gives.
        known: the names that there are.
        key: the config key, without the leading `config.`.

    Raises:
        UserError: if the name is unknown.
    """
    require(name in known, key, f"{name!r} is unknown; known: {', '.join(sorted(known))}")


def require_numbers(values: object, kind: type, key: str) -> None:
    """Raises a UserError unless a value is a sequence of positive numbers.

    Args:
        values: what the config gives.
        kind: the type of the numbers.
        key: the config key, without the leading `config.`.

    Raises:
        UserError: if it is anything else.
    """
    numbers = isinstance(values, (tuple, list)) and all(isinstance(v, kind) and v > 0 for v in values or [None])
    require(numbers, key, f"must be positive numbers of type {kind.__name__}, such as (2, 3), got {values!r}")


def reason_of(error: BaseException) -> str:
    """Why something failed, in a few words out of the many that libraries make.

    Args:
        error: what was raised.

    Returns:
        What the operating system said, if it said anything, and else the first line of the cause.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    # So tensorstore, which is no part of Python, hands down what the operating system said.
    numbers = re.findall(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) else int(numbers[-1]) if numbers else None
    return f"{type(error).__name__}: {error}".splitlines()[0][:200] if number is None else os.strerror(number).lower()
