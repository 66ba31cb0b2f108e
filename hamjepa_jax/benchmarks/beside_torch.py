"""A process beside ours that computes the same in PyTorch, step by step."""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds the options --against and --torch_python, and reads the command line.

    Args:
        parser: the parser of a script.

    Returns:
        The options; a `torch_python` that PyTorch is wanted of (`against` is "torch") has it.
    """
    parser.add_argument("--against", choices=("torch",), help="time the same in PyTorch, by turns in the same run")
    explanation = "a Python that has PyTorch (default: this one)"
    parser.add_argument("--torch_python", default=sys.executable, metavar="PYTHON", help=explanation)
    options = parser.parse_args()
    if options.against == "torch" and not has_torch(options.torch_python):
        wanted = "install PyTorch there, or name one with --torch_python"
        parser.error(f"--against=torch: {options.torch_python!r} is not a Python that can import torch; {wanted}")
    return options


def has_torch(python: str) -> bool:
    """Whether a Python can import PyTorch.

    Args:
        python: its path, or its name on the search path.

    Returns:
        False also where there is no such program.
    """
    try:
        subprocess.run([python, "-c", "import torch"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def ratio_to_torch(row: Mapping[str, Any]) -> float:
    """Our time over that of PyTorch.

    Args:
        row: `seconds` and `torch_seconds`, some of each.

    Returns:
        The ratio of the medians.
    """
    return float(np.median(row["seconds"]) / np.median(row["torch_seconds"]))


class TorchStep:
    """The step in PyTorch, in a process of its own, see `torch_step`."""

    def __init__(self, python: str, variant: str, arguments: Sequence[str]):
        """Starts the process.

        Args:
            python: a Python that has PyTorch.
            variant: the objective.
            arguments: those of `torch_step`.
        """
        command = [python, "-m", "hamjepa_jax.benchmarks.torch_step", variant, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> None:
        """Makes a step and waits for it.

        Raises:
            RuntimeError: if the process has ended.
        """
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError("the step in PyTorch has failed; its error is above")

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()
