"""Writing images as a TFDS data set of array_record files, so that it can be stopped at any time and goes on."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from hamjepa_jax.data import tfds_source
from hamjepa_jax.data.images import UnreadableImage, decode, orientation, resize_shorter_side
from hamjepa_jax.data.sources import EncodedSource
from hamjepa_jax.errors import UserError

VERSION = "1.0.0"
STATE_FILE = "conversion.json"
ORDER_SEED = 0
JPEG_QUALITY = 95
# Images in flight at a time, over all threads.
AT_ONCE = 1024


class RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """The rate of the last seconds."""
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} images/s")


def progress_bar() -> Progress:
    """A progress bar with the rate and the time that is left."""
    description = TextColumn("{task.description}")
    return Progress(description, BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())


@contextmanager
def thread_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that drop what they have not begun when they are interrupted."""
    executor = ThreadPoolExecutor(workers)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def in_order(executor: ThreadPoolExecutor, function: Callable[[int], Any], indices: Sequence[int]) -> Iterator[Any]:
    """The values of a function, computed by threads, a bounded number at a time."""
    for start in range(0, len(indices), AT_ONCE):
        yield from executor.map(function, indices[start : start + AT_ONCE])


def progressing(items: Iterable[Any], progress: Progress, task: int) -> Iterator[Any]:
    """The items, each of which advances a task of a progress bar."""
    for item in items:
        yield item
        progress.advance(task)


def digest(names: Iterable[str]) -> str:
    """A short fingerprint of many names."""
    joined = "\0".join(names).encode("utf-8", "surrogateescape")
    return hashlib.sha256(joined).hexdigest()[:16]


def keeps_its_bytes(encoded: bytes, shorter_side: int | None) -> bool:
    """Whether an image file is what every reader of the data set understands, and no larger than it may be.

    Readers understand upright 8-bit RGB images of one frame.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        plain = image.mode == "RGB" and not image.has_transparency_data and not getattr(image, "is_animated", False)
        # Byte 24 of a PNG file is its bit depth; Pillow shows 16 bits a channel as 8.
        known = image.format == "JPEG" or (image.format == "PNG" and encoded[24] == 8)
        small = shorter_side is None or min(image.size) <= shorter_side
        return plain and known and small and orientation(image) == 1


def convert(encoded: bytes, shorter_side: int | None) -> bytes:
    """One image as it is written to the data set.

    Args:
        encoded: an image file of any kind.
        shorter_side: a larger image is shrunk until its shorter side has this length, pixels; None: never.

    Returns:
        A JPEG or PNG file, RGB.

    Raises:
        UnreadableImage: if it cannot be decoded.
    """
    pixels = decode(encoded)
    if keeps_its_bytes(encoded, shorter_side):
        return encoded
    if shorter_side is not None:
        pixels = resize_shorter_side(pixels, shorter_side)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def in_fixed_order(example: bytes) -> bytes:
    """A serialised example with its features in an order that is the same in every process, as TFDS's is not."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(example).SerializeToString(deterministic=True)


class Conversion:
    """A data set that is being written: its directory, its settings, and the shards that are finished.

    Everything lies in DIR/NAME/1.0.0.incomplete, which is renamed at the very end, so TFDS never sees half of it.
    """

    def __init__(
        self,
        sources: Mapping[str, EncodedSource],
        output: Path,
        name: str,
        *,
        shorter_side: int | None,
        images_per_shard: int,
    ):
        """Finds what is there already.

        Args:
            sources: name of the split → its images; all of the same classes.
            output: the TFDS data directory.
            name: name of the data set.
            shorter_side: larger images are shrunk until their shorter side has this length, pixels; None: never.
            images_per_shard: images in one file, those that are left out included.

        Raises:
            UserError: if the directory holds something else, or a conversion with other settings.
        """
        import tensorflow_datasets as tfds

        self.sources, self.name = sources, name
        self.shorter_side, self.images_per_shard = shorter_side, images_per_shard
        self.final = output / name / VERSION
        self.finished = self.final.exists()
        self.directory = self.final if self.finished else self.final.with_name(f"{VERSION}.incomplete")
        names = list(next(iter(sources.values())).class_names)
        self.features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=names),
                "file_name": tfds.features.Text(),
            }
        )
        self.settings = {
            "shorter_side": shorter_side,
            "images_per_shard": images_per_shard,
            "classes": f"{len(names)} {digest(names)}",
        }
        for split, source in sources.items():
            listing = digest(source.name_of(index) for index in range(len(source)))
            self.settings[f"images of {split}"] = f"{len(source)} {listing}"
        self.shards = self._read_state()

    def _read_state(self) -> dict[str, Any]:
        """The finished shards: file name → records, bytes and what was left out."""
        there = f"--output: {self.directory}"
        try:
            state = json.loads((self.directory / STATE_FILE).read_text())
            settings, shards = state["settings"], state["shards"]
        except (OSError, ValueError, KeyError) as error:
            if self.directory.exists() and any(self.directory.iterdir()):
                raise UserError(f"{there} is not a conversion by this command; take another --name") from error
            return {}
        differing = [
            f"{key} ({settings.get(key)} there, {self.settings.get(key)} now)"
            for key in (settings | self.settings)
            if settings.get(key) != self.settings.get(key)
        ]
        if differing:
            raise UserError(
                f"{there} was converted with other settings: {'; '.join(differing)}; give the same, take another "
                "--name, or delete it"
            )
        return shards

    def _write_state(self) -> None:
        """Replaces the state file, whole."""
        replacement = self.directory / f"{STATE_FILE}.tmp"
        replacement.write_text(json.dumps({"settings": self.settings, "shards": self.shards}, indent=1) + "\n")
        replacement.replace(self.directory / STATE_FILE)

    def plan(self, split: str) -> Iterator[tuple[str, np.ndarray]]:
        """The shards of a split: file name, and the indices of its images, which are shuffled over the split."""
        order = np.random.default_rng(ORDER_SEED).permutation(len(self.sources[split]))
        count = -(-len(order) // self.images_per_shard)
        for shard in range(count):
            first = shard * self.images_per_shard
            file = f"{self.name}-{split}.{tfds_source.FILE_FORMAT}-{shard:05d}-of-{count:05d}"
            yield file, order[first : first + self.images_per_shard]

    def is_finished(self, file: str) -> bool:
        """Whether a shard is there with all its records."""
        from array_record.python import array_record_module

        if file not in self.shards or not (self.directory / file).exists():
            return False
        try:
            reader = array_record_module.ArrayRecordReader(str(self.directory / file))
            return reader.num_records() == self.shards[file]["records"]
        except RuntimeError:
            return False

    def example(self, split: str, index: int) -> tuple[str, bytes | None, str]:
        """One record: the name of the image, the serialised example or None, and why it is None."""
        source = self.sources[split]
        # A file name need not be valid UTF-8, but a text feature must.
        name = os.fsencode(source.name_of(index)).decode("utf-8", "replace")
        try:
            encoded, label = source.record(index)
            image = convert(encoded, self.shorter_side)
        except UnreadableImage as error:
            return name, None, str(error)
        example = self.features.encode_example({"image": image, "label": label, "file_name": name})
        return name, in_fixed_order(self.features.serialize_example(example)), ""

    def _write_shard(self, file: str, examples: Iterator[tuple[str, bytes | None, str]]) -> None:
        """Writes one shard under a temporary name, renames it, and notes that it is finished."""
        from array_record.python import array_record_module

        temporary, records, size, unreadable = self.directory / f"{file}.tmp", 0, 0, []
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
        for name, example, reason in examples:
            if example is None:
                unreadable.append([name, reason])
            else:
                writer.write(example)
                records, size = records + 1, size + len(example)
        writer.close()
        temporary.replace(self.directory / file)
        self.shards[file] = {"records": records, "bytes": size, "unreadable": unreadable}
        self._write_state()

    def run(self, workers: int) -> None:
        """Writes the shards that are missing, then the metadata, and gives the directory its final name.

        Args:
            workers: number of threads.

        Raises:
            UserError: if no image of a split can be read.
            OSError: if the directory cannot be written; RuntimeError, if it is array_record that notices.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_state()
        with thread_pool(workers) as executor, progress_bar() as progress:
            for split, source in self.sources.items():
                plan = list(self.plan(split))
                left = [(file, indices) for file, indices in plan if not self.is_finished(file)]
                done = len(source) - sum(len(indices) for _, indices in left)
                task = progress.add_task(split, total=len(source), completed=done)
                for file, indices in left:
                    examples = in_order(executor, partial(self.example, split), indices)
                    self._write_shard(file, progressing(examples, progress, task))
        self._write_metadata()
        self.directory.rename(self.final)

    def _write_metadata(self) -> None:
        """Writes what TFDS needs to find the records: dataset_info.json, features.json and the names of the classes."""
        import tensorflow_datasets as tfds

        infos = []
        for split in self.sources:
            shards = [self.shards[file] for file, _ in self.plan(split)]
            lengths = [shard["records"] for shard in shards]
            if not sum(lengths):
                first = ": ".join(shards[0]["unreadable"][0])
                raise UserError(f"--source: no image of {split} can be read; the first, {first}")
            template = tfds.core.ShardedFileTemplate(
                data_dir=self.directory, dataset_name=self.name, split=split, filetype_suffix=tfds_source.FILE_FORMAT
            )
            size = sum(shard["bytes"] for shard in shards)
            infos.append(tfds.core.SplitInfo(split, lengths, size, filename_template=template))
        # The check that TFDS would make reads through TensorFlow.
        tfds.folder_dataset.write_metadata(
            data_dir=self.directory,
            features=self.features,
            split_infos=infos,
            version=VERSION,
            description=f"Made by hamjepa_jax.data.prepare; longest shorter side, in pixels: {self.shorter_side}.",
            check_data=False,
        )

    def unreadable(self) -> list[tuple[str, str]]:
        """Name and reason of every image that was left out, sorted."""
        return sorted((name, reason) for shard in self.shards.values() for name, reason in shard["unreadable"])

    def records(self, split: str) -> int:
        """The number of images written of a split."""
        return sum(self.shards[file]["records"] for file, _ in self.plan(split))
