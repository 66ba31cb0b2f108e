"""How a run can end before its time: a mistake of the user's, a value that is not finite, a request to stop."""

import signal
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


class Interrupted(Exception):
    """The run was asked to stop, and its state is saved.

    Attributes:
        step: the number of updates made.
        signal_number: the signal that asked for it.
    """

    def __init__(self, step: int, signal_number: int):
        """Keeps the step and the signal."""
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}")
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
