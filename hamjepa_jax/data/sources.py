"""Sources of labelled images: random access to uint8 images, with the names of their classes."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

SPLITS = ("train", "test")
DIGITS_TEST_FRACTION = 0.25


class Source(Protocol):
    """Random access to labelled images.

    Attributes:
        class_names: the names of the classes, indexed by label.
    """

    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """The number of examples."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One example, {"image": uint8 (H, W, C), "label": int}."""


class ArraySource:
    """A source held in memory whole.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int32 (N,).
        class_names: the names of the classes, indexed by label.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]):
        """Keeps the arrays; images and labels must be of one length."""
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        self.images, self.labels, self.class_names = images, labels, class_names

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.images)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One example, {"image": uint8 (H, W, C), "label": int}."""
        return {"image": self.images[index], "label": int(self.labels[index])}


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


SOURCES: dict[str, Callable[[str], ArraySource]] = {"digits": digits}
