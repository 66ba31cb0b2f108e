"""Checksums of the files of a checkpoint, written with it and compared before it is read."""

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from hamjepa_jax.errors import reason_of

CHECKSUMS_FILE = "checksums.json"
CHUNK_BYTES = 2**22


def write_checksums(directory: Path, paths: Iterable[Path]) -> None:
    """Writes the sizes and the checksums of files, to the disk and not only to its cache.

    Args:
        directory: where the file of checksums goes.
        paths: the files, below the directory; directories among them are passed over.
    """
    files = [path for path in paths if path.is_file()]
    checksums = {str(file.relative_to(directory)): [file.stat().st_size, _checksum(file)] for file in files}
    with (directory / CHECKSUMS_FILE).open("w") as stream:
        json.dump(checksums, stream)
        stream.flush()
        os.fsync(stream.fileno())


def damage_of(directory: Path) -> str | None:
    """Compares the files of a checkpoint with the checksums that were written with them.

    Args:
        directory: the directory of the checkpoint.

    Returns:
        What is wrong, or None if the files are as they were written, or there are no checksums to tell.

    Raises:
        PermissionError: if a file may not be read.
    """
    name = "state"
    try:
        there = os.listdir(directory)
        if name not in there:
            return f"{name}: missing"
        name = CHECKSUMS_FILE
        if name not in there:
            return None
        checksums = json.loads((directory / name).read_text())
        for name, (size, checksum) in checksums.items():
            found = (directory / name).stat().st_size
            if found != size:
                return f"{name}: {found} bytes of {size}"
            if _checksum(directory / name) != checksum:
                return f"{name}: other bytes than were written"
    except PermissionError:
        raise
    except FileNotFoundError:
        return f"{name}: missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{name}: {reason_of(error)}"
    return None


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
