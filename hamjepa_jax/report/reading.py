"""What the directory of a run holds, read with nothing but numpy; what is missing there is empty here."""

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hamjepa_jax.errors import UserError, reason_of
from hamjepa_jax.workdir import Workdir, flatten

HEADLINE_K = 20


class Run(NamedTuple):
    """One run.

    Attributes:
        directory: where it is.
        label: what tells it from the other runs of the report.
        config: the resolved config, nested.
        log: the records of metrics.jsonl.
        metrics: what evaluation/metrics.json holds.
        diagnostics: what evaluation/diagnostics.json holds.
        pictures: the arrays of evaluation/pictures.npz.
        views: the file of the contact sheet of views, or None.
    """

    directory: Path
    label: str
    config: dict[str, Any]
    log: list[dict[str, Any]]
    metrics: dict[str, Any]
    diagnostics: dict[str, Any]
    pictures: dict[str, np.ndarray]
    views: Path | None

    @property
    def seed(self) -> Any:
        """The seed, which every part of the run shares."""
        return at(self.config, "train", "seed")

    @property
    def headline(self) -> str | None:
        """The first of the evaluated coordinates, or None before there is an evaluation."""
        return next(iter(at(self.metrics, "features") or {}), None)


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Reads the directories of runs.

    Args:
        directories: at least one.

    Returns:
        The runs in the same order, with labels that differ.

    Raises:
        UserError: naming a directory that is not there or holds no run, or a file that cannot be read.
    """
    runs = [_read_run(Path(directory)) for directory in directories]
    return [run._replace(label=label) for run, label in zip(runs, _labels(runs), strict=True)]


def at(tree: Any, *keys: str) -> Any:
    """The value under nested keys, or None where one of them is missing.

    Args:
        tree: nested mappings.
        keys: from the outermost to the innermost.

    Returns:
        The value.
    """
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def numbers(values: Any) -> np.ndarray:
    """Numbers as an array, NaN for what is missing or not finite.

    Args:
        values: a list of numbers, None, and strings such as "nan", possibly nested; or None.

    Returns:
        An array in float64 of the same shape; without elements for None.
    """
    array = np.array([] if values is None else values, dtype=object)
    flat = [_number(value) for value in array.ravel()]
    return np.array(flat, np.float64).reshape(array.shape)


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The keys of the config in which runs differ.

    Args:
        runs: the runs.

    Returns:
        The value of every run by the key, whose parts are joined by dots; None where a run does not have it.
    """
    configs = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key) for config in configs] for key in keys}
    # As JSON, in which 1 and True are not the same.
    return {key: found for key, found in values.items() if len({json.dumps(value) for value in found}) > 1}


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return np.nan
    return number if np.isfinite(number) else np.nan


def _read_run(directory: Path) -> Run:
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such directory; name the directories of runs")
    workdir = Workdir(directory)
    if not workdir.config_file.is_file():
        raise UserError(f"{directory}: no run here (there is no config.json)")
    config = _read_json(workdir.config_file)
    return Run(
        directory=directory,
        label=str(config.get("variant", directory.name)),
        config=config,
        log=_read_log(workdir.log_file),
        metrics=_read_json(workdir.evaluation / "metrics.json"),
        diagnostics=_read_json(workdir.evaluation / "diagnostics.json"),
        pictures=_read_arrays(workdir.evaluation / "pictures.npz"),
        views=workdir.views_file if workdir.views_file.is_file() else None,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object, got a {type(content).__name__}")
    return content


def _read_log(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        lines = path.read_text().splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None
    records = []
    for number, line in enumerate(lines, 1):
        # A run that is going on, or was killed, may have written half a line.
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
            record["step"] + 0
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: line {number} is not a record with a step") from None
        records.append(record)
    return records


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None


def _labels(runs: Sequence[Run]) -> list[str]:
    """Variants, with what else it takes to tell the runs apart."""
    variants = [run.label for run in runs]
    seeded = [f"{run.label}, seed {run.seed}" for run in runs]
    named = [f"{run.label} ({run.directory.name})" for run in runs]
    numbered = [f"{label} {number}" for number, label in enumerate(named, 1)]
    return next(labels for labels in (variants, seeded, named, numbered) if max(Counter(labels).values()) == 1)
