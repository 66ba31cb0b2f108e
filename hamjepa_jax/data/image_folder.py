"""Images in folders, one folder a class, on disk or in a zip file."""

import os
import re
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hamjepa_jax.data.images import UnreadableImage
from hamjepa_jax.data.sources import EncodedSource, SourceError, some

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
# Folders of these names are taken for splits without being asked for.
USUAL_SPLITS = ("train", "val", "valid", "validation", "test")
LAYOUT = "DIR/SPLIT/CLASS/IMAGE, such as train/cat/1.jpg"
# Kaggle's ImageNet-100 has its classes spread over train.X1 ... train.X4, and val.X.
PART = re.compile(r"(?<=.)\.X\d*\Z")


def split_of(folder: str) -> str:
    """The split to which a top folder belongs: its name, without the number of a part."""
    return PART.sub("", folder)


def is_hidden(path: str) -> bool:
    """Whether a path in a data set, with / between its pieces, is no data: hidden, or put there by macOS."""
    return path.startswith((".", "__MACOSX")) or "/." in path or "/__MACOSX" in path


class DirectoryFiles:
    """The files below a directory, by their paths relative to it, with / between the pieces."""

    def __init__(self, root: Path):
        """Keeps the directory."""
        self.root = root

    def folders(self) -> list[str]:
        """The names of the folders at the top."""
        with os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))

    def below(self, folder: str = "") -> Iterator[str]:
        """All files below a folder, at any depth; of the whole directory if none is named."""
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    yield from self.below(path)
                else:
                    yield path

    def read(self, path: str) -> bytes:
        """The content of a file."""
        return (self.root / path).read_bytes()


class ZipFiles:
    """The files in a zip file, by their paths in it; read without unpacking, from any thread or process.

    A single folder at the top that is no split is left out of the paths.
    """

    def __init__(self, root: Path):
        """Reads the list of files.

        Raises:
            SourceError: if the file is no zip file, or asks for a password.
        """
        self.__setstate__({"root": root, "prefix": ""})
        try:
            members = self._open().infolist()
        except (zipfile.BadZipFile, EOFError) as error:
            raise SourceError("data_dir", f"{root} is no complete zip file ({error}); fetch it again") from error
        if any(member.flag_bits & 1 for member in members):
            raise SourceError("data_dir", f"{root} asks for a password; unpack it, and give the folder")
        names = [member.filename for member in members if not is_hidden(member.filename)]
        top = {name.split("/")[0] for name in names if "/" in name}
        if len(top) == 1 and split_of(*top) not in USUAL_SPLITS:
            self.prefix = f"{top.pop()}/"

    def __getstate__(self):
        return {"root": self.root, "prefix": self.prefix}

    def __setstate__(self, state):
        self.root, self.prefix = state["root"], state["prefix"]
        self._lock, self._zip, self._process = threading.Lock(), None, None

    def _open(self) -> zipfile.ZipFile:
        """The zip file, opened anew in a new process, since processes that share a file share its position."""
        with self._lock:
            if self._process != os.getpid():
                self._zip, self._process = zipfile.ZipFile(self.root), os.getpid()
        return self._zip

    def _paths(self) -> Iterator[str]:
        for name in self._open().NameToInfo:
            path = name.removeprefix(self.prefix)
            if name.startswith(self.prefix) and not name.endswith("/") and not is_hidden(path):
                yield path

    def folders(self) -> list[str]:
        """The names of the folders at the top."""
        return sorted({path.split("/")[0] for path in self._paths() if "/" in path})

    def below(self, folder: str = "") -> Iterator[str]:
        """All files below a folder, at any depth; of the whole file if none is named."""
        return (path for path in self._paths() if not folder or path.startswith(f"{folder}/"))

    def read(self, path: str) -> bytes:
        """The content of a file."""
        return self._open().read(self.prefix + path)


class PathList:
    """Many paths in little memory: one byte string, which is also quick to send to another process."""

    def __init__(self, paths: Sequence[str]):
        """Joins the paths."""
        encoded = [os.fsencode(path) for path in paths]
        self._joined = b"".join(encoded)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)

    def __len__(self) -> int:
        """The number of paths."""
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        """One path; raises IndexError if there is no such path."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not among the {len(self)} examples")
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._joined[start : self._ends[index]])


def open_files(root: Path) -> DirectoryFiles | ZipFiles:
    """The files of a directory or of a zip file.

    Args:
        root: the directory or the zip file.

    Returns:
        Access to the files.

    Raises:
        SourceError: if there is nothing at `root`, it must not be read, or is neither.
    """
    if not root.exists():
        raise SourceError("data_dir", f"{root} does not exist; give a folder {LAYOUT}, a zip file of one, or TFDS data")
    if root.is_dir():
        return DirectoryFiles(root)
    if root.suffix.lower() == ".zip" or zipfile.is_zipfile(root):
        return ZipFiles(root)
    raise SourceError("data_dir", f"{root} is neither a folder nor a zip file; give a folder {LAYOUT}")


def splits_of(root: Path, wanted: str | None = None) -> list[str] | None:
    """The splits of an image folder.

    Args:
        root: a directory or a zip file.
        wanted: a name that marks a split although it is not a usual one.

    Returns:
        The names of the splits; None where `root` is no image folder: no folder in it has the name of a split.

    Raises:
        SourceError: if there is nothing at `root`, or it cannot be read.
    """
    try:
        files = open_files(root)
        folders = files.folders()
    except OSError as error:
        raise cannot_be_read(root, error) from error
    splits = list(dict.fromkeys(split_of(folder) for folder in folders))
    if isinstance(files, ZipFiles):
        return splits
    if (root / "dataset_info.json").exists() or not any(name in (*USUAL_SPLITS, wanted) for name in splits):
        return None
    return splits


def cannot_be_read(root: Path, error: OSError) -> SourceError:
    """The error for a directory or file that the system does not let us read."""
    return SourceError("data_dir", f"{error.filename or root} cannot be read ({error.strerror}); check its permissions")


class FilesSource(EncodedSource):
    """Images in files, in the order of their paths.

    Attributes:
        class_names: the names of the classes, indexed by label.
        labels: int32 (N,).
    """

    def __init__(self, files: DirectoryFiles | ZipFiles, by_class: Mapping[str, Sequence[str]]):
        """Sorts the images.

        Args:
            files: access to the files.
            by_class: the paths of the images of every class.
        """
        self._files = files
        self.class_names = tuple(sorted(by_class))
        counts = [len(by_class[name]) for name in self.class_names]
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._paths = PathList([path for name in self.class_names for path in sorted(by_class[name])])

    def __len__(self) -> int:
        """The number of images."""
        return len(self._paths)

    def record(self, index: int) -> tuple[bytes, int]:
        """The image file and the label of one image."""
        path = self._paths[index]
        try:
            return self._files.read(path), int(self.labels[index])
        except OSError as error:
            raise UnreadableImage(error.strerror or f"{error}") from error
        # What zipfile raises for a broken or unknown member.
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError) as error:
            raise UnreadableImage(" ".join(f"{error}".split())) from error

    def name_of(self, index: int) -> str:
        """The path of the image in the directory or zip file."""
        return self._paths[index]


class ImageFolderSource(FilesSource):
    """The images DIR/SPLIT/CLASS/IMAGE, at any depth below CLASS, sorted by class and path.

    The folders SPLIT.X1, SPLIT.X2 ... and SPLIT.X are parts of one split; their classes are put together.
    """

    def __init__(self, root: Path, split: str):
        """Lists the images.

        Args:
            root: the directory DIR, or a zip file of it.
            split: name of the split.

        Raises:
            SourceError: if it cannot be read, or has no such split, or that holds no image.
        """
        try:
            files = open_files(root)
            parts = [folder for folder in files.folders() if split_of(folder) == split]
            if not parts:
                there = ", ".join(splits_of(root) or ())
                raise SourceError("split", f"{split!r} is not a split of {root}; its splits: {there or 'none'}")
            by_class = defaultdict(list)
            for part in parts:
                for path in files.below(part):
                    pieces = path.split("/")
                    if len(pieces) > 2 and path.lower().endswith(EXTENSIONS):
                        by_class[pieces[1]].append(path)
        except OSError as error:
            raise cannot_be_read(root, error) from error
        if not by_class:
            raise SourceError(
                "data_dir",
                f"{root} holds no image in {some(parts)}; expected {LAYOUT}, with one of {' '.join(EXTENSIONS)}",
            )
        super().__init__(files, by_class)
