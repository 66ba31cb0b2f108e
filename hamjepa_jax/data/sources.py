"""Sources of labelled images: random access to uint8 images, with the names of their classes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hamjepa_jax.data.images import decode

SPLITS = ("train", "test")
DIGITS_TEST_FRACTION = 0.25
NAMES_IN_A_MESSAGE = 5


class SourceError(Exception):
    """Data that cannot be opened: what is wrong, where, what is allowed, what to do; one line.

    Attributes:
        argument: which argument of `open_source` is at fault: `name`, `data_dir`, `split` or `class_list`.
    """

    def __init__(self, argument: str, problem: str):
        """Keeps the argument; the message is the problem alone."""
        super().__init__(problem)
        self.argument = argument


class Source(ABC):
    """Random access to labelled images.

    Attributes:
        class_names: the names of the classes, indexed by label.
        labels: int32 (N,), or None where only reading every record would tell.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray | None

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abstractmethod
    def read(self, index: int, min_shorter_side: int | None = None) -> Mapping[str, Any]:
        """Reads one example.

        Args:
            index: number of the example.
            min_shorter_side: allows decoding at a smaller size; see `images.decode`.

        Returns:
            {"image": uint8 (H, W, C), "label": int}.

        Raises:
            UnreadableImage: if the example is broken.
            IndexError: if there is no such example.
        """

    def still(self, index: int, min_shorter_side: int | None = None) -> Mapping[str, Any]:
        """What an evaluation embeds of one example, see `read`: all of it, unless it is a film."""
        return self.read(index, min_shorter_side)

    @abstractmethod
    def name_of(self, index: int) -> str:
        """What to call the example in a message."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One example at its full size, see `read`."""
        return self.read(index)


class ArraySource(Source):
    """A source held in memory whole.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int32 (N,).
        class_names: the names of the classes, indexed by label.
        sizes: int32 (N, 2), height and width of the part of each image, from the top left, that is no padding; None
            where all of it is image.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: tuple[str, ...],
        sizes: np.ndarray | None = None,
    ):
        """Keeps the arrays, which must be of one length."""
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        if sizes is not None and sizes.shape != (len(images), 2):
            raise ValueError(f"sizes: must be of shape ({len(images)}, 2), got {sizes.shape}")
        self.images, self.labels, self.class_names, self.sizes = images, labels, class_names, sizes

    @property
    def nbytes(self) -> int:
        """The memory that the images take, bytes."""
        return self.images.nbytes

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.images)

    def read(self, index: int, min_shorter_side: int | None = None) -> Mapping[str, Any]:
        """One example, {"image": uint8 (H, W, C), "label": int}, without the padding; nothing is left to decode."""
        height, width = self.images.shape[1:3] if self.sizes is None else self.sizes[index]
        return {"image": self.images[index, :height, :width], "label": int(self.labels[index])}

    def name_of(self, index: int) -> str:
        """What to call the example in a message."""
        return f"image {index}"


class EncodedSource(Source):
    """A source whose images are decoded when they are read."""

    @abstractmethod
    def record(self, index: int) -> tuple[bytes, int]:
        """The image file and the label of one example.

        Raises:
            UnreadableImage: if it cannot be read.
            IndexError: if there is no such example.
        """

    def read_labels(self) -> np.ndarray:
        """The labels of all examples, int32 (N,); may take long where `labels` is None."""
        return self.labels

    def read(self, index: int, min_shorter_side: int | None = None) -> Mapping[str, Any]:
        """Reads and decodes one example, {"image": uint8 (H, W, 3), "label": int}."""
        encoded, label = self.record(index)
        return {"image": decode(encoded, min_shorter_side), "label": label}


class SubsetSource(EncodedSource):
    """Some of the examples of a source, with labels of their own.

    Attributes:
        source: the whole source.
        indices: int64 (N,), where the examples are in it.
        labels: int32 (N,).
        class_names: the names of the classes, indexed by label.
    """

    def __init__(self, source: EncodedSource, indices: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]):
        """Keeps the arguments."""
        self.source, self.indices, self.labels, self.class_names = source, indices, labels, class_names

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.indices)

    def record(self, index: int) -> tuple[bytes, int]:
        """The image file and the label of one example."""
        encoded, _ = self.source.record(int(self.indices[index]))
        return encoded, int(self.labels[index])

    def name_of(self, index: int) -> str:
        """What to call the example in a message: its name in the whole source."""
        return self.source.name_of(int(self.indices[index]))


def digits(split: str) -> ArraySource:
    """The 1,797 handwritten digits that come with scikit-learn: real 8×8 images, no download.

    The split into 1,347 training and 450 test images is stratified by class and always the same.

    Args:
        split: `train` or `test`.

    Returns:
        Images uint8 (N, 8, 8, 1), the 17 grey levels spread over 0…255.

    Raises:
        ValueError: for an unknown split.

    References:
        Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is unknown; known splits: {', '.join(SPLITS)}")
    dataset = load_digits()
    images = np.rint(dataset.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    labels = dataset.target.astype(np.int32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=DIGITS_TEST_FRACTION, random_state=0, stratify=labels
    )
    class_names = tuple(str(name) for name in dataset.target_names)
    return ArraySource(*{"train": (train_x, train_y), "test": (test_x, test_y)}[split], class_names)


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are, for a message."""
    left_out = len(names) - NAMES_IN_A_MESSAGE
    return ", ".join(names[:NAMES_IN_A_MESSAGE]) + (f" and {left_out} more" if left_out > 0 else "")


def read_class_list(path: Path) -> tuple[str, ...]:
    """Reads a class list: one class name a line; blank lines and lines that start with # are ignored.

    Args:
        path: the text file.

    Returns:
        The names, in the order of the file.

    Raises:
        SourceError: if the file cannot be read, is empty, or names a class twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise SourceError("class_list", f"{path} does not exist; give a text file, one class name a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError("class_list", f"{path} cannot be read as a text file ({error})") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise SourceError("class_list", f"{path} names no class; write one class name a line")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError("class_list", f"{path} names some classes more than once: {some(twice)}")
    return tuple(names)


def select_classes(source: ArraySource | EncodedSource, names: tuple[str, ...]) -> ArraySource | EncodedSource:
    """Keeps the examples of some classes only, in their order; labels become positions in `names`.

    Args:
        source: the whole source.
        names: the classes to keep.

    Returns:
        A source of these classes.

    Raises:
        SourceError: if the source lacks one of the classes, or holds no image of any.
    """
    absent = [name for name in names if name not in set(source.class_names)]
    if absent:
        raise SourceError(
            "class_list",
            f"{len(absent)} of the {len(names)} classes are not among the {len(source.class_names)} of the data: "
            f"{some(absent)}; the data has {some(source.class_names)}; give a list of these, or none for all",
        )
    new_label = {name: label for label, name in enumerate(names)}
    renumbered = np.array([new_label.get(name, -1) for name in source.class_names], np.int32)
    labels = renumbered[source.labels if isinstance(source, ArraySource) else source.read_labels()]
    indices = np.flatnonzero(labels >= 0)
    if not len(indices):
        raise SourceError("class_list", f"the data holds no image of the {len(names)} classes")
    if isinstance(source, ArraySource):
        sizes = None if source.sizes is None else source.sizes[indices]
        return ArraySource(source.images[indices], labels[indices], names, sizes)
    return SubsetSource(source, indices, labels[indices], names)


def check_same_classes(train: Source, test: Source, names: tuple[str, str] = ("train", "test")) -> None:
    """Makes sure that a label means the same class in two splits.

    Args:
        train: one split.
        test: the other.
        names: what the message calls them.

    Raises:
        SourceError: if the classes differ.
    """
    if train.class_names == test.class_names:
        return
    both = (train.class_names, test.class_names)
    only = [sorted(set(own) - set(other)) for own, other in (both, both[::-1])]
    found = [f"only in {name}: {some(alone)}" for name, alone in zip(names, only, strict=True) if alone]
    counts = " and ".join(f"{name} {len(own)}" for name, own in zip(names, both, strict=True))
    raise SourceError(
        "data_dir",
        f"the splits must have the same classes, and have {counts}; {'; '.join(found) or 'their order differs'}; "
        "give both the same class folders, or name the classes to use in a class list",
    )


def open_source(
    name: str, split: str, *, data_dir: str | Path | None, class_list: str | Path | None = None
) -> ArraySource | EncodedSource:
    """Opens one split of a data set.

    Args:
        name: `digits`; `pendulum` or `coupled_pendula`, see `pendulum.films`; or the name of a TFDS data set, such as
            `cifar10`, `name/config` or `name:version`; anything where `data_dir` is an image folder.
        split: name of the split.
        data_dir: an image folder DIR/SPLIT/CLASS/IMAGE, a zip file of one, a TFDS data directory, or the directory of
            one TFDS data set; None: TFDS's default directory.
        class_list: text file with the names of the classes to keep, see `read_class_list`; None: all classes.

    Returns:
        The source; it can be pickled, and opens its files anew in the process that unpickles it.

    Raises:
        SourceError: naming the argument at fault.
    """
    # These modules build on this one.
    from hamjepa_jax.data import image_folder, pendulum, tfds_source

    if name in pendulum.PENDULA and class_list is not None:
        raise SourceError("class_list", f"{name} has no classes to choose from, but sectors of motion; give none")
    names = None if class_list is None else read_class_list(Path(class_list).expanduser())
    if name == "digits" or name in pendulum.PENDULA:
        if split not in SPLITS:
            raise SourceError("split", f"{split!r} is not a split of {name}; its splits: {', '.join(SPLITS)}")
        source = digits(split) if name == "digits" else pendulum.films(name, split)
    else:
        root = tfds_source.default_directory() if data_dir is None else Path(data_dir).expanduser()
        if data_dir is None and not root.exists():
            raise SourceError("data_dir", f"not given, and {root}, the default of TFDS, does not exist; give a folder")
        if image_folder.splits_of(root, split) is not None:
            source = image_folder.ImageFolderSource(root, split)
        else:
            source = tfds_source.TfdsSource(tfds_source.find(name, root), split)
    return source if names is None else select_classes(source, names)
