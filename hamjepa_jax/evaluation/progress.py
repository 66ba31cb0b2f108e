"""What an evaluation has done so far, on the disk, so that one that was interrupted goes on where it was."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hamjepa_jax.atomic_files import read_json, write_json, writing


class Progress:
    """Rows of arrays, appended block by block, and results, computed once; a directory that goes away in the end."""

    def __init__(self, directory: Path, of: Mapping[str, Any], *, writes_results: bool = True):
        """Opens the directory; what another evaluation left there is thrown away.

        Args:
            directory: where everything lies.
            of: what is evaluated and how, as plain JSON values: what was kept counts only if they are the same.
            writes_results: whether this process writes results. All of them write rows.

        Raises:
            StorageError: if the directory cannot be written.
        """
        self._directory, self._writes_results = directory, writes_results
        self._results_file = directory / "results.json"
        wanted, of_file = json.loads(json.dumps(of)), directory / "of.json"
        with writing(directory):
            if writes_results and read_json(of_file) != wanted:
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir(parents=True)
                write_json(of_file, wanted)
            self._results = read_json(self._results_file) or {}

    def rows(self, name: str) -> "Rows":
        """The rows of one pass over a data set.

        Args:
            name: what to call them.

        Returns:
            The rows that were appended so far, to which more can be.
        """
        return Rows(self._directory / name)

    def result(self, name: str, compute: Callable[[], Any]) -> Any:
        """A result, computed unless it is known.

        Args:
            name: what to call it.
            compute: returns it, as plain JSON values.

        Returns:
            The result.

        Raises:
            StorageError: if it cannot be written.
        """
        if name not in self._results:
            self._results[name] = compute()
            if self._writes_results:
                write_json(self._results_file, self._results)
        return self._results[name]

    def remove(self) -> None:
        """Removes everything."""
        shutil.rmtree(self._directory, ignore_errors=True)


class Rows:
    """Arrays with a common leading axis, appended block by block; a block counts when it is there whole."""

    def __init__(self, directory: Path):
        """Opens the files.

        Args:
            directory: where they lie.

        Raises:
            StorageError: if they cannot be read or written.
        """
        self._directory, self._committed_file = directory, directory / "committed.json"
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            committed = read_json(self._committed_file) or {}
        self.num_blocks: int = committed.get("blocks", 0)
        self._num_rows: int = committed.get("rows", 0)
        self._layout: dict[str, Any] = committed.get("arrays", {})
        sizes = [path.stat().st_size for path in map(self._file, self._layout) if path.exists()]
        needed = [self._num_rows * self._row_bytes(name) for name in self._layout]
        if len(sizes) < len(needed) or any(size < need for size, need in zip(sizes, needed, strict=True)):
            # A machine that went down may have lost what was said to be there.
            self.num_blocks, self._num_rows, self._layout = 0, 0, {}

    def append(self, block: Mapping[str, np.ndarray]) -> None:
        """Appends a block.

        Args:
            block: arrays by name, the same names and shapes but for the leading axis in every block; nothing for a
                block without rows.

        Raises:
            StorageError: if it cannot be written.
        """
        count = len(next(iter(block.values()), ()))
        with writing(self._directory):
            for name, array in block.items():
                self._layout.setdefault(name, {"dtype": array.dtype.str, "shape": array.shape[1:]})
                path, committed = self._file(name), self._num_rows * self._row_bytes(name)
                with path.open("r+b" if path.exists() else "w+b") as file:
                    file.seek(committed)
                    file.write(np.ascontiguousarray(array).data)
                    file.truncate()
            self._num_rows, self.num_blocks = self._num_rows + count, self.num_blocks + 1
        committed = {"blocks": self.num_blocks, "rows": self._num_rows, "arrays": self._layout}
        write_json(self._committed_file, committed)

    def arrays(self) -> dict[str, np.ndarray]:
        """All rows, mapped into memory where there are any."""
        found = {}
        for name, layout in self._layout.items():
            shape = (self._num_rows, *layout["shape"])
            # No file of no bytes can be mapped.
            empty = self._num_rows * self._row_bytes(name) == 0
            found[name] = (
                np.zeros(shape, layout["dtype"])
                if empty
                else np.memmap(self._file(name), layout["dtype"], mode="r", shape=shape)
            )
        return found

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.bin"

    def _row_bytes(self, name: str) -> int:
        layout = self._layout[name]
        return int(np.prod(layout["shape"], dtype=np.int64)) * np.dtype(layout["dtype"]).itemsize
