"""The directory of a run: where everything lies, and who may write to it."""

import json
from pathlib import Path
from typing import Any

from hamjepa_jax.errors import UserError

# Raising these continues a run, or changes only how it is watched and judged.
CHANGEABLE = (
    "train.epochs",
    "train.max_steps",
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
    """Paths of a run: config.json, metrics.jsonl, checkpoints/, evaluation/ and views.png."""

    def __init__(self, path: Path):
        """Names the paths; nothing is created."""
        self.path = path
        self.config_file = path / "config.json"
        self.log_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.evaluation = path / "evaluation"
        self.views_file = path / "views.png"

    def claim(self, config: dict[str, Any]) -> None:
        """Creates the directory and writes the resolved config, or makes sure that it holds the same experiment.

        Args:
            config: the resolved config of the run, as plain JSON values.

        Raises:
            UserError: if the directory holds something else; nothing in it is touched then.
        """
        if self.config_file.exists():
            self.check(config)
        # Views are looked at before there is a run.
        elif self.path.exists() and (not self.path.is_dir() or set(self.path.iterdir()) - {self.views_file}):
            raise UserError(f"--workdir={self.path}: exists and is not the directory of a run; take another --workdir")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            replacement = self.config_file.with_suffix(".tmp")
            replacement.write_text(json.dumps(config, indent=2) + "\n")
            replacement.replace(self.config_file)
        except OSError as error:
            raise UserError(f"--workdir={self.path}: cannot be written ({error.strerror})") from error

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
