"""What a worker does: from the numbers of examples to arrays of one shape."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hamjepa_jax.data import images
from hamjepa_jax.data.images import UnreadableImage
from hamjepa_jax.data.sources import Source

CROP_TRIES = 10
# Of both sides of the images in the baseline of raw pixels.
MAX_PIXELS_SIZE = 32
# So many unreadable examples in a row are no accident.
MAX_NEIGHBOURS = 100


class Unreadable(NamedTuple):
    """A record that was skipped.

    Attributes:
        name: what to call it.
        reason: what is wrong with it.
    """

    name: str
    reason: str


class CanvasBatch(NamedTuple):
    """Whole images.

    Attributes:
        example_ids: indices in the data set, int32 (B,).
        images: uint8 (B, C, C, channels), each at the top left of a square canvas.
        sizes: rows and columns of each image, int32 (B, 2).
    """

    example_ids: np.ndarray
    images: np.ndarray
    sizes: np.ndarray


class CroppedBatch(NamedTuple):
    """Views that are already cut out and resized, all else being left to the device.

    Attributes:
        example_ids: indices in the data set, int32 (B,).
        crops: for each group of views, uint8 (B, V, S, S, channels).
        boxes: for each group of views, what was cut out: top, left, height and width, int32 (B, V, 4).
        sizes: rows and columns of each image, int32 (B, 2).
    """

    example_ids: np.ndarray
    crops: tuple[np.ndarray, ...]
    boxes: tuple[np.ndarray, ...]
    sizes: np.ndarray


class CropGroup(NamedTuple):
    """Views of one kind that the host cuts out.

    Attributes:
        num_views: how many of an example.
        size: height and width of a view.
        scale: smallest and largest area, as a fraction of that of the image.
        ratio: smallest and largest aspect ratio, width/height.
    """

    num_views: int
    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]


class LabelledCanvases(NamedTuple):
    """Consecutive examples, whole; unreadable ones are left out.

    Attributes:
        images: uint8 (b, C, C, channels), each at the top left of a square canvas.
        sizes: rows and columns of each image, int32 (b, 2).
        labels: int32 (b,).
    """

    images: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray


class EvaluationBlock(NamedTuple):
    """Consecutive examples as the frozen encoder sees them; unreadable ones are left out.

    Attributes:
        images: uint8 (b, S, S, channels).
        pixels: the same images, at most 32×32, uint8 (b, s, s, channels).
        labels: int32 (b,).
        example_ids: indices in the data set, int32 (b,).
    """

    images: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray
    example_ids: np.ndarray


def draw_crop_box(
    rng: np.random.Generator, height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draws the box of a random resized crop; the host's form of `views.draw_crop`.

    Args:
        rng: the random numbers.
        height: rows of the image.
        width: columns of the image.
        scale: smallest and largest area, as a fraction of that of the image.
        ratio: smallest and largest aspect ratio, width/height.

    Returns:
        Top, left, height and width of the box.
    """
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 1 <= box_height <= height and 1 <= box_width <= width:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return int(top), int(left), box_height, box_width
    box_height = min(height, max(1, round(width / ratio[0])))
    box_width = min(width, max(1, round(height * ratio[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def on_canvases(examples: Sequence[Mapping[str, Any]], canvas_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts images on canvases, see `images.fit_canvas`.

    Args:
        examples: the examples.
        canvas_size: side of the canvas.

    Returns:
        Canvases uint8 (B, canvas_size, canvas_size, channels), and rows and columns of each image, int32 (B, 2).
    """
    fitted = [images.fit_canvas(example["image"], canvas_size) for example in examples]
    return np.array([canvas for canvas, _ in fitted]), np.array([size for _, size in fitted], np.int32)


class CanvasLoader:
    """Reads whole images onto canvases."""

    def __init__(self, source: Source, *, canvas_size: int):
        """Keeps the arguments.

        Args:
            source: the images.
            canvas_size: side of the canvas; larger images are shrunk to it once.
        """
        self._source, self._canvas_size = source, canvas_size

    def __call__(self, step: int, example_ids: np.ndarray) -> tuple[CanvasBatch, list[Unreadable]]:
        """Reads a batch; unreadable examples are replaced by their successors."""
        del step
        skipped: list[Unreadable] = []
        examples = [read_or_next(self._source, int(i), skipped, self._canvas_size) for i in example_ids]
        return CanvasBatch(example_ids.astype(np.int32), *on_canvases(examples, self._canvas_size)), skipped


class CropLoader:
    """Reads images and cuts their views out, at the full resolution of the files."""

    def __init__(self, source: Source, *, groups: tuple[CropGroup, ...], seed: int):
        """Keeps the arguments.

        Args:
            source: the images.
            groups: the views.
            seed: seed of the boxes.
        """
        self._source, self._groups, self._seed = source, groups, seed
        # No crop is then enlarged because the file was decoded at less than its size.
        self._min_shorter_side = max(math.ceil(g.size / math.sqrt(g.scale[0] * g.ratio[0])) for g in groups)

    def __call__(self, step: int, example_ids: np.ndarray) -> tuple[CroppedBatch, list[Unreadable]]:
        """Reads a batch; unreadable examples are replaced by their successors."""
        skipped: list[Unreadable] = []
        crops: list[list[np.ndarray]] = [[] for _ in self._groups]
        boxes: list[list[tuple[int, int, int, int]]] = [[] for _ in self._groups]
        sizes = []
        for example_id in example_ids:
            image = read_or_next(self._source, int(example_id), skipped, self._min_shorter_side)["image"]
            sizes.append(image.shape[:2])
            rng = np.random.default_rng([self._seed, step, int(example_id)])
            for group, group_crops, group_boxes in zip(self._groups, crops, boxes, strict=True):
                for _ in range(group.num_views):
                    box = draw_crop_box(rng, *image.shape[:2], scale=group.scale, ratio=group.ratio)
                    group_crops.append(images.resized_crop(image, box, group.size))
                    group_boxes.append(box)

        def by_example(values: list) -> tuple[np.ndarray, ...]:
            stacked = [np.stack(group_values) for group_values in values]
            return tuple(array.reshape(len(example_ids), -1, *array.shape[1:]) for array in stacked)

        box_arrays = tuple(array.astype(np.int32) for array in by_example(boxes))
        batch = CroppedBatch(example_ids.astype(np.int32), by_example(crops), box_arrays, np.array(sizes, np.int32))
        return batch, skipped


class LabelledCanvasLoader:
    """Reads whole images and labels, to be kept in memory."""

    def __init__(self, source: Source, *, canvas_size: int):
        """Keeps the arguments.

        Args:
            source: the images.
            canvas_size: side of the canvas; larger images are shrunk to it once.
        """
        self._source, self._canvas_size = source, canvas_size

    def __call__(self, step: int, example_ids: np.ndarray) -> tuple[LabelledCanvases, list[Unreadable]]:
        """Reads a block."""
        del step
        examples, skipped, _ = read_or_skip(self._source, self._source.read, example_ids, self._canvas_size)
        canvases, sizes = on_canvases(examples, self._canvas_size)
        labels = np.array([example["label"] for example in examples], np.int32)
        return LabelledCanvases(canvases, sizes, labels), skipped


class EvaluationLoader:
    """Reads images as the frozen encoder sees them."""

    def __init__(self, source: Source, *, size: int, resize: int):
        """Keeps the arguments.

        Args:
            source: the images.
            size: side of the square that is cut out of the centre.
            resize: length to which the shorter side is resized before.
        """
        self._source, self._size, self._resize = source, size, resize

    def __call__(self, step: int, example_ids: np.ndarray) -> tuple[EvaluationBlock, list[Unreadable]]:
        """Reads a block."""
        del step
        examples, skipped, readable = read_or_skip(self._source, self._source.still, example_ids, self._resize)
        views = [images.shorter_side_crop(e["image"], size=self._size, resize=self._resize) for e in examples]
        side = min(self._size, MAX_PIXELS_SIZE)
        pixels = [images.resize_to(view, side, side) for view in views]
        labels = np.array([example["label"] for example in examples], np.int32)
        return EvaluationBlock(np.array(views), np.array(pixels), labels, np.array(readable, np.int32)), skipped


class ViewBlock(NamedTuple):
    """Consecutive examples as an encoder sees them; unreadable ones are left out.

    Attributes:
        images: uint8 (b, S, S, channels).
        labels: int32 (b,).
        example_ids: indices in the data set, int64 (b,).
    """

    images: np.ndarray
    labels: np.ndarray
    example_ids: np.ndarray


class ViewLoader:
    """Reads images of any kind as an encoder sees them."""

    def __init__(self, source: Source, *, size: int, resize: int, channels: int):
        """Keeps the arguments.

        Args:
            source: the images.
            size: side of the square that is cut out of the centre.
            resize: length to which the shorter side is resized before.
            channels: 1 or 3, to which images are converted.
        """
        self._source, self._size, self._resize, self._channels = source, size, resize, channels

    def __call__(self, step: int, example_ids: np.ndarray) -> tuple[ViewBlock, list[Unreadable]]:
        """Reads a block."""
        del step
        examples, skipped, readable = read_or_skip(self._source, self._source.still, example_ids, self._resize)
        converted = [images.with_channels(example["image"], self._channels) for example in examples]
        views = [images.shorter_side_crop(image, size=self._size, resize=self._resize) for image in converted]
        labels = np.array([example["label"] for example in examples], np.int32)
        shape = (len(views), self._size, self._size, self._channels)
        return ViewBlock(np.array(views, np.uint8).reshape(shape), labels, np.array(readable, np.int64)), skipped


def read_or_skip(
    source: Source,
    read: Callable[..., Mapping[str, Any]],
    example_ids: Sequence[int],
    min_shorter_side: int | None = None,
) -> tuple[list[Mapping[str, Any]], list[Unreadable], list[int]]:
    """Reads examples, without those that cannot be read.

    Args:
        source: the images.
        read: how one is read, `source.read` or `source.still`.
        example_ids: numbers of the examples.
        min_shorter_side: see `images.decode`.

    Returns:
        The examples, what was skipped, and the numbers of the examples.
    """
    examples, skipped, readable = [], [], []
    for example_id in example_ids:
        try:
            examples.append(read(int(example_id), min_shorter_side))
            readable.append(int(example_id))
        except UnreadableImage as error:
            skipped.append(Unreadable(source.name_of(int(example_id)), str(error)))
    return examples, skipped, readable


def read_or_next(
    source: Source, index: int, skipped: list[Unreadable], min_shorter_side: int | None = None
) -> Mapping[str, Any]:
    """Reads an example, or the first after it that can be read.

    Args:
        source: the images.
        index: number of the example.
        skipped: what could not be read is added here.
        min_shorter_side: see `images.decode`.

    Returns:
        The example.

    Raises:
        UnreadableImage: if a hundred in a row cannot be read.
    """
    for offset in range(min(len(source), MAX_NEIGHBOURS)):
        neighbour = (index + offset) % len(source)
        try:
            return source.read(neighbour, min_shorter_side)
        except UnreadableImage as error:
            skipped.append(Unreadable(source.name_of(neighbour), str(error)))
    raise UnreadableImage(f"no image can be read from {skipped[0].name} on ({skipped[0].reason})")
