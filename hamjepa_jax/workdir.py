"""The directory of a run: where everything lies, and who may write to it."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any, TextIO

from hamjepa_jax.errors import UserError

# Raising these continues a run, or changes only how it is watched and judged.
CHANGEABLE = (
    "train.epochs",
    "train.max_steps",
    "train.max_skipped_steps",
    "train.steps_per_dispatch",
    "train.compiler_options",
    "profile",
    "model.remat",
    "checkpoint.",
    "evaluation.",
    "log.",
    "mesh.",
    "data.data_dir",
    "data.num_workers",
    "data.resident_bytes",
    "data.max_corrupt",
)


class Workdir:
    """Paths of a run: config.json, metrics.jsonl, checkpoints/, evaluation/, profile/, views.png, and a lock.

    Of a run that was not begun here, imported.json says where its weights come from.
    """

    def __init__(self, path: Path):
        """Names the paths; nothing is created."""
        self.path = path
        self.config_file = path / "config.json"
        self.log_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.evaluation = path / "evaluation"
        self.views_file = path / "views.png"
        self.profile = path / "profile"
        self.imported_file = path / "imported.json"
        self._lock_file = path / "lock"
        self._lock: TextIO | None = None

    def claim(self, config: dict[str, Any]) -> None:
        """Creates the directory and writes the resolved config, or makes sure that it holds the same experiment.

        From then on no other process can claim it, until this one ends, in whatever way.

        Args:
            config: the resolved config of the run, as plain JSON values.

        Raises:
            UserError: if the directory holds something else or belongs to a run that is going on; nothing in it is
                touched then.
        """
        replacement = self.config_file.with_suffix(".tmp")
        before_a_run = {self.views_file, self.views_file.with_suffix(".tmp"), self._lock_file, replacement}
        if self.config_file.exists():
            self.check(config)
        # Views are looked at before there is a run, and a run may have been killed before there was a config.
        elif self.path.exists() and (not self.path.is_dir() or set(self.path.iterdir()) - before_a_run):
            raise UserError(f"--workdir={self.path}: exists and is not the directory of a run; take another --workdir")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            replacement.write_text(json.dumps(config, indent=2) + "\n")
            replacement.replace(self.config_file)
        except OSError as error:
            raise UserError(f"--workdir={self.path}: cannot be written ({error.strerror})") from error

    def _take_lock(self) -> None:
        self._lock = self._lock_file.open("a+")
        try:
            # A lock of the process, not of the file's handle, which worker processes would inherit and outlive it with.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._lock.seek(0)
            raise UserError(
                f"--workdir={self.path}: a run is going on there ({self._lock.read().strip()}); wait for it, stop it, "
                "or take another --workdir"
            ) from None
        except OSError:
            # Some network file systems have no locks.
            return
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def check(self, config: dict[str, Any]) -> None:
        """Makes sure that the directory holds a run of this experiment.

        Args:
            config: the resolved config, as plain JSON values.

        Raises:
            UserError: naming the first fields that differ, or if there is no run.
        """
        there, now = flatten(self.read_config_file()), flatten(config)
        differing = [
            f"{key} ({there.get(key)} there, {now.get(key)} now)"
            for key in sorted(there.keys() | now.keys())
            if there.get(key) != now.get(key) and not key.startswith(CHANGEABLE)
        ]
        if differing:
            more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
            raise UserError(
                f"--workdir={self.path}: holds a run of another config: {', '.join(differing[:4])}{more}; "
                "take another --workdir, or the config of that run"
            )

    def read_config_file(self) -> dict[str, Any]:
        """Reads config.json.

        Raises:
            UserError: if there is none or it cannot be read.
        """
        try:
            return json.loads(self.config_file.read_text())
        except FileNotFoundError:
            raise UserError(f"--workdir={self.path}: no run here (there is no config.json)") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.config_file}: cannot be read ({error})") from error


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, the keys joined by dots."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
