"""Files of embeddings: NumPy's .npz, and .parquet for data frames; written piece by piece, and read again."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hamjepa_jax.atomic_files import replacing
from hamjepa_jax.errors import UserError

# Rows of a .parquet file that are in memory at once.
ROWS_AT_ONCE = 4096
ABOUT = b"hamjepa_jax"


class Embeddings(NamedTuple):
    """Embeddings of images, and what they were made of.

    Attributes:
        features: float32 (N, d), possibly mapped into memory.
        names: the names of the images, (N,).
        classes: the names of their classes, (N,); empty where they have none.
        about: plain JSON values: "model", its "weights" (`Pretrained.fingerprint`), "images", "coordinates", and
            "unreadable", [name, reason] of each image that could not be read.
    """

    features: np.ndarray
    names: Sequence[str]
    classes: Sequence[str]
    about: dict[str, Any]


def write(path: Path, embeddings: Embeddings) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: ends in .npz or .parquet. An .npz holds the arrays `features`, `names` and `classes`, and `about` as JSON;
            a .parquet has the columns `name`, `class` and `features`, and the rest in its metadata.
        embeddings: what is written.

    Raises:
        StorageError: if it cannot be written; an older file is intact then.
    """
    with replacing(path) as replacement:
        WRITERS[path.suffix](replacement, embeddings)


def _write_npz(path: Path, embeddings: Embeddings) -> None:
    with path.open("wb") as file:
        np.savez(
            file,
            features=embeddings.features,
            names=np.array(embeddings.names, np.str_),
            classes=np.array(embeddings.classes, np.str_),
            about=np.array(json.dumps(embeddings.about)),
        )


def _write_parquet(path: Path, embeddings: Embeddings) -> None:
    import pyarrow
    from pyarrow import parquet

    dim = embeddings.features.shape[1]
    fields = [
        ("name", pyarrow.string()),
        ("class", pyarrow.string()),
        ("features", pyarrow.list_(pyarrow.float32(), dim)),
    ]
    schema = pyarrow.schema(fields, metadata={ABOUT: json.dumps(embeddings.about)})
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in _pieces(len(embeddings.features)):
            values = pyarrow.array(np.ascontiguousarray(embeddings.features[rows]).reshape(-1))
            columns = [
                pyarrow.array(embeddings.names[rows], pyarrow.string()),
                pyarrow.array(embeddings.classes[rows], pyarrow.string()),
                pyarrow.FixedSizeListArray.from_arrays(values, dim),
            ]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))


def _pieces(count: int) -> Iterator[slice]:
    return (slice(first, first + ROWS_AT_ONCE) for first in range(0, count, ROWS_AT_ONCE))


WRITERS: dict[str, Callable[[Path, Embeddings], None]] = {".npz": _write_npz, ".parquet": _write_parquet}


def read(path: Path) -> Embeddings:
    """Reads a file that `write` has written.

    Args:
        path: the file.

    Returns:
        The embeddings, in memory.

    Raises:
        UserError: if there is none, or it is another kind of file.
    """
    if not path.exists():
        raise UserError(f"--features={path}: there is no such file; make it with --mode=embed")
    try:
        return READERS[path.suffix](path)
    # A file of another kind makes the libraries raise almost anything.
    except Exception as error:
        raise UserError(
            f"--features={path}: is no file of embeddings ({' '.join(str(error).split())[:120]}); make one with "
            "--mode=embed"
        ) from error


def _read_npz(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as arrays:
        names, classes = arrays["names"].tolist(), arrays["classes"].tolist()
        return Embeddings(arrays["features"], names, classes, json.loads(str(arrays["about"])))


def _read_parquet(path: Path) -> Embeddings:
    from pyarrow import parquet

    table = parquet.read_table(path)
    dim = table.schema.field("features").type.list_size
    features = table["features"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
    about = json.loads(table.schema.metadata[ABOUT])
    return Embeddings(features, table["name"].to_pylist(), table["class"].to_pylist(), about)


READERS: dict[str, Callable[[Path], Embeddings]] = {".npz": _read_npz, ".parquet": _read_parquet}
