"""A process beside ours that computes the same in PyTorch, step by step."""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option --torch.

    Args:
        parser: the parser of a script.
    """
    own = sys.executable if importlib.util.find_spec("torch") else None
    explanation = "a Python that has PyTorch (default: this one, if it has; without, only ours is timed)"
    parser.add_argument("--torch", type=python_with_torch, default=own, help=explanation)


def python_with_torch(python: str) -> str:
    """Makes sure that a Python has PyTorch.

    Args:
        python: its path, or its name on the search path.

    Returns:
        The same.

    Raises:
        argparse.ArgumentTypeError: if there is no such program, or it cannot import PyTorch.
    """
    try:
        subprocess.run([python, "-c", "import torch"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise argparse.ArgumentTypeError(f"{python!r} is not a Python that can import torch") from None
    return python


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
