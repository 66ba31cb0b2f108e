"""Files that are always whole: a new one takes the old one's place in a single step."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hamjepa_jax.errors import StorageError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the operating system says when something cannot be written into a StorageError.

    Args:
        path: what is written.

    Raises:
        StorageError: in one line, for an OSError within.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Has a file written beside an older one, whose place it takes when it is whole.

    Args:
        path: the file, whose directory is made if need be.

    Yields:
        Where to write it.

    Raises:
        StorageError: if it cannot be written; an older one is intact then, as after any other exception within.
    """
    replacement = path.with_suffix(".tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield replacement
            replacement.replace(path)
    finally:
        with contextlib.suppress(OSError):
            replacement.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, see `replacing`.

    Args:
        path: the file.
        value: plain JSON values; a number that is not finite is refused.

    Raises:
        StorageError: if it cannot be written; an older one is intact then.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with replacing(path) as replacement:
        replacement.write_text(text)


def plain(value: Any, *, digits: int | None = None) -> Any:
    """The same as plain JSON values.

    Args:
        value: mappings, sequences, arrays and numbers, one in another.
        digits: to how many digits fractions are rounded, or None for all.

    Returns:
        Dictionaries, lists and numbers; None for a number that is not finite.
    """
    if isinstance(value, Mapping):
        return {name: plain(part, digits=digits) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part, digits=digits) for part in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist(), digits=digits)
    if isinstance(value, float):
        rounded = value if digits is None else float(f"{value:.{digits}g}")
        return rounded if math.isfinite(value) else None
    return value


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.

    Returns:
        Its value, or None if there is none, or none that can be read.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
