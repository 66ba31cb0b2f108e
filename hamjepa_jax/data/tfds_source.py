"""Data sets that TensorFlow Datasets has prepared as array_record files, read without TensorFlow."""

import hashlib
import logging
import operator
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hamjepa_jax.data.images import UnreadableImage
from hamjepa_jax.data.sources import EncodedSource, SourceError, some

FILE_FORMAT = "array_record"
INFO_FILE = "dataset_info.json"
VERSION = re.compile(r"\d+\.\d+\.\d+")
LABELS_AT_ONCE = 512
# Fewer labels than this are read within seconds.
LABELS_WITHOUT_PROGRESS = 20_000


def default_directory() -> Path:
    """Where TFDS keeps its data sets."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def prepared_in(root: Path) -> dict[str, Path]:
    """The data sets that TFDS has prepared in a data directory.

    Args:
        root: the data directory, or the folder of one data set in it.

    Returns:
        Name, with `/config` where there is one, and `:version` → directory; oldest version first.
    """
    files = [file for depth in ("*/*", "*/*/*") for file in root.glob(f"{depth}/{INFO_FILE}")]
    if not files:
        files, root = list(root.glob(f"*/{INFO_FILE}")), root.parent
    directories = [file.parent for file in files if VERSION.fullmatch(file.parent.name)]
    directories.sort(key=lambda directory: [int(number) for number in directory.name.split(".")])
    return {f"{path.parent.relative_to(root).as_posix()}:{path.name}": path for path in directories}


def find(name: str, root: Path) -> Path:
    """Finds the directory of a data set.

    Args:
        name: `name`, `name/config`, `name:version` or `name/config:version`; without a version, the newest.
        root: a TFDS data directory, or the directory of one data set and version.

    Returns:
        The directory with its dataset_info.json.

    Raises:
        SourceError: if there is none, or the name fits several.
    """
    if (root / INFO_FILE).exists():
        return root
    there = prepared_in(root)
    fitting = {full: path for full, path in there.items() if name in (full, full.partition(":")[0])}
    if not fitting:
        fitting = {full: path for full, path in there.items() if full.startswith(f"{name}/")}
        if len({full.partition(":")[0] for full in fitting}) > 1:
            configs = sorted(f"{name}/{path.parent.name}" for path in fitting.values())
            raise SourceError("name", f"{name!r} has several configs in {root}; take one of {some(configs)}")
    if not fitting:
        raise SourceError(
            "data_dir",
            f"{root} holds neither an image folder (SPLIT/CLASS/IMAGE, such as train/cat/1.jpg) nor the TFDS data set "
            f"{name!r}; TFDS data sets there: {some(sorted(there)) or 'none'}; prepare one with "
            f"`tfds build {name} --data_dir={root} --file_format={FILE_FORMAT}`, or from images with "
            f"`python -m hamjepa_jax.data.prepare --source=FOLDER --output={root} --name={name}`",
        )
    return list(fitting.values())[-1]


def is_worth_logging(record: logging.LogRecord) -> bool:
    """False for array_record's line about the group size of a file, which matters only to reading in order."""
    return not str(record.msg).startswith("File %s was created with group size")


def open_builder(directory: Path):
    """The TFDS builder of a prepared data set.

    Args:
        directory: holds its dataset_info.json.

    Returns:
        A `tfds.core.DatasetBuilder`.

    Raises:
        SourceError: if it cannot be read, or is stored in another format than array_record.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
        formats = {file_format.value for file_format in builder.info.available_file_formats()}
    # TFDS raises anything for metadata that is broken, of another version or not permitted to be read.
    except Exception as error:
        reason = " ".join(f"{error}".split())[:200]
        raise SourceError("data_dir", f"{directory} cannot be read as a TFDS data set ({reason})") from error
    if FILE_FORMAT not in formats:
        raise SourceError(
            "data_dir",
            f"{directory} is stored as {', '.join(sorted(formats))}, and only {FILE_FORMAT} can be read: build it "
            f"again with `tfds build {builder.name} --file_format={FILE_FORMAT} --data_dir=ANOTHER_DIRECTORY`",
        )
    return builder


class TfdsSource(EncodedSource):
    """One split of a data set that TFDS has prepared, with the features `image` and `label`."""

    def __init__(self, directory: Path, split: str):
        """Reads the metadata, and the first record.

        Args:
            directory: holds the dataset_info.json of the data set.
            split: name of the split; TFDS's slices, such as `train[:10%]`, are understood.

        Raises:
            SourceError: if it cannot be read, lacks the split or the features, or is incomplete.
        """
        self.__setstate__({"directory": directory, "split": split, "labels": None})
        builder = open_builder(directory)
        self.name, self.version = builder.info.full_name.rpartition("/")[::2]
        self.class_names = self._class_names(builder)
        self._parts = self._find_parts(builder)
        self._length = sum(part.take for part in self._parts)
        try:
            _, label = self.record(0)
        except UnreadableImage as error:
            raise SourceError("data_dir", f"{directory}: its first record cannot be read ({error})") from error
        if not 0 <= label < len(self.class_names):
            raise SourceError("split", f"{split!r} of {self.name} has no labels (the first is {label}); take another")

    def _class_names(self, builder) -> tuple[str, ...]:
        import tensorflow_datasets as tfds

        features = dict(builder.info.features)
        image, label = features.get("image"), features.get("label")
        is_image = isinstance(image, tfds.features.Image) and np.dtype(image.np_dtype) in (np.uint8, np.uint16)
        if not is_image or not isinstance(label, tfds.features.ClassLabel):
            raise SourceError(
                "name",
                f"{builder.name} has the features {', '.join(sorted(features))}, and needs `image` (an image of 8 or "
                "16 bits) and `label` (a class label); take another data set",
            )
        if not label.num_classes:
            raise SourceError("name", f"{builder.name} has no classes; take another data set")
        return tuple(label.names)

    def _find_parts(self, builder) -> list:
        """The files of the split, and which records of each."""
        try:
            parts = builder.info.splits[self.split].file_instructions
        except (KeyError, ValueError, AssertionError):
            there = ", ".join(sorted(builder.info.splits))
            raise SourceError(
                "split", f"{self.split!r} is not a split of {self.name}; its splits: {there or 'none'}"
            ) from None
        if not sum(part.take for part in parts):
            raise SourceError("split", f"{self.split!r} of {self.name} holds no images; take another")
        missing = [Path(part.filename).name for part in parts if not Path(part.filename).exists()]
        if missing:
            raise SourceError(
                "data_dir",
                f"{self.directory} lacks {len(missing)} of the {len(parts)} files of {self.split!r}: {some(missing)}; "
                "copy or build it again",
            )
        return list(parts)

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in ("_reader", "_lock")}

    def __setstate__(self, state):
        vars(self).update(state)
        self._reader, self._lock = None, threading.Lock()

    def _open(self):
        """The array_record files, opened when they are first needed in this process."""
        with self._lock:
            if self._reader is None:
                from array_record.python.array_record_data_source import ArrayRecordDataSource

                logging.getLogger("absl").addFilter(is_worth_logging)
                self._reader = ArrayRecordDataSource(self._parts)
        return self._reader

    def __len__(self) -> int:
        """The number of examples."""
        return self._length

    def name_of(self, index: int) -> str:
        """Data set, split and number of the record."""
        return f"{self.name} {self.split} record {index}"

    def record(self, index: int) -> tuple[bytes, int]:
        """The image file and the label of one example."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not among the {len(self)} examples")
        reader, parse = self._open(), parser()
        try:
            features = parse(reader[index])
            return features["image"].bytes_list.value[0], features["label"].int64_list.value[0]
        # What array_record and protobuf raise for broken files: ValueError, RuntimeError, DecodeError, IndexError ...
        except Exception as error:
            raise UnreadableImage(f"broken record ({' '.join(f'{error}'.split())[:120]})") from error

    def read_labels(self) -> np.ndarray:
        """The labels of all examples; reads every record, once: the labels are then kept in the user's cache.

        Returns:
            int32 (N,).

        Raises:
            SourceError: if the files cannot be read.
        """
        if self.labels is None:
            file = self._cache_file()
            labels = load_labels(file, len(self), len(self.class_names))
            if labels is None:
                labels = np.fromiter(self._each_label(), np.int32, len(self))
                save_labels(file, labels)
            self.labels = labels
        return self.labels

    def _each_label(self) -> Iterator[int]:
        steps = track(
            range(0, len(self), LABELS_AT_ONCE),
            description=f"labels of {self.name} {self.split}, read once",
            transient=True,
            disable=len(self) < LABELS_WITHOUT_PROGRESS,
        )
        reader, parse = self._open(), parser()
        try:
            for start in steps:
                for record in reader.__getitems__(range(start, min(start + LABELS_AT_ONCE, len(self)))):
                    yield parse(record)["label"].int64_list.value[0]
        except Exception as error:
            reason = " ".join(f"{error}".split())[:200]
            raise SourceError("data_dir", f"{self.directory} cannot be read near record {start} ({reason})") from error

    def _cache_file(self) -> Path:
        """Named after the data set, and the size and age of its files, so that one that is built anew is read anew."""
        files = [Path(part.filename) for part in self._parts]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        digest = hashlib.sha256(repr((self.name, self.version, self.split, stats)).encode()).hexdigest()[:16]
        readable = re.sub(r"\W+", "-", f"{self.name}-{self.version}-{self.split}-{len(self)}")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return cache / "hamjepa_jax" / "labels" / f"{readable}-{digest}.npy"


def parser() -> Callable[[bytes], Any]:
    """A function from a record to its features: name → a protocol buffer with one list."""
    from tensorflow_datasets.proto import tf_example_pb2

    return lambda record: tf_example_pb2.Example.FromString(record).features.feature


def load_labels(file: Path, length: int, num_classes: int) -> np.ndarray | None:
    """The labels in a cache file, int32 (length,); None where it is missing, broken, or not of this data set."""
    try:
        labels = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(labels, np.ndarray) and labels.dtype == np.int32 and labels.shape == (length,)
    return labels if fits and labels.min() >= 0 and labels.max() < num_classes else None


def save_labels(file: Path, labels: np.ndarray) -> None:
    """Writes a cache file, whole or not at all; does nothing where the cache cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
            np.save(temporary, labels)
        os.replace(temporary.name, file)
    except OSError:
        return
