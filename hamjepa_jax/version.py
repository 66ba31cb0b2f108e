"""Which program, with which libraries, writes a checkpoint."""

import contextlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from hamjepa_jax import __version__


def code_version() -> dict[str, Any]:
    """What the program is that writes a checkpoint.

    Returns:
        The versions of this package, its commit if it is a checkout ("+changes" if files differ from it), Python and
        the libraries below, and the numbers of devices and processes.
    """
    checkout, commit = Path(__file__).parents[1], None
    if (checkout / ".git").exists():
        command = "git --no-optional-locks describe --always --abbrev=40 --dirty=+changes --exclude=*"
        with contextlib.suppress(OSError):
            described = subprocess.run(command.split(), cwd=checkout, capture_output=True, text=True)
            commit = described.stdout.strip() or None
    return {
        "hamjepa_jax": __version__,
        "commit": commit,
        "python": platform.python_version(),
        "jax": metadata.version("jax"),
        "jaxlib": metadata.version("jaxlib"),
        "orbax": metadata.version("orbax-checkpoint"),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def program_of(version: dict[str, Any]) -> str:
    """Names a program in a few words.

    Args:
        version: what `code_version` returned there.

    Returns:
        Such as "hamjepa_jax 0.1.0 at commit 1234 with jax 0.10.2".
    """
    commit = f" at commit {version['commit']}" if version["commit"] else ""
    return f"hamjepa_jax {version['hamjepa_jax']}{commit} with jax {version['jax']}"
