"""Embeds all images of a folder, a zip file or a TFDS data set, however many there are."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hamjepa_jax import version
from hamjepa_jax.data.images import UnreadableImage
from hamjepa_jax.data.loading import Unreadable, ViewBlock, ViewLoader
from hamjepa_jax.data.pipeline import blocks
from hamjepa_jax.data.sources import EncodedSource
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation.progress import Progress as KeptProgress
from hamjepa_jax.evaluation.progress import Rows
from hamjepa_jax.inference.tables import Embeddings
from hamjepa_jax.pretrained import Pretrained


class _Skipped:
    """What cannot be read is looked up in the end, when it is known of all blocks, those before an interruption too."""

    def add(self, records: list[Unreadable]) -> None:
        del records


def embed(
    model: Pretrained,
    source: EncodedSource,
    *,
    images: str,
    coordinates: str,
    kept: Path,
    batch_size: int,
    num_workers: int,
    console: Console,
) -> Embeddings:
    """Embeds images, with a progress bar; called again after an interruption it goes on where it was.

    The host holds two batches, whatever the number of images: what is done lies in files.

    Args:
        model: the model.
        source: the images.
        images: what they are called.
        coordinates: `q`, `p`, `qp` or `whole`, see `Pretrained.coordinates`.
        kept: directory of what is done, which may be removed when the embeddings are written.
        batch_size: images that are embedded at once, on all devices.
        num_workers: processes that read and decode; 0: a thread of this one.
        console: where the progress is shown.

    Returns:
        The embeddings, mapped into memory.

    Raises:
        UserError: if no image can be read.
        StorageError: if what is done cannot be kept.
    """
    of = {
        "config": model.config.to_json(),
        "weights": model.fingerprint,
        "images": images,
        "names": hashlib.sha256("\n".join(map(source.name_of, range(len(source)))).encode()).hexdigest(),
        "coordinates": coordinates,
        "batch_size": batch_size,
        "program": version.program_of(version.code_version()),
    }
    rows = KeptProgress(kept, of).rows("embedded")
    first = rows.num_blocks * batch_size
    if first:
        console.print(f"going on after {min(first, len(source)):,} of {len(source):,} images")
    settings = model.config
    loader = ViewLoader(
        source,
        size=settings.data.view_size,
        resize=settings.evaluation.resize,
        channels=len(settings.data.mean),
    )
    loaded = blocks(loader, len(source), _Skipped(), block_size=batch_size, num_workers=num_workers, first=first)
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("embedding", total=len(source), completed=first)
        for block, z in _one_ahead(model, loaded, batch_size):
            rows.append(_row(model, block, z, coordinates))
            progress.update(bar, advance=batch_size)
    return _collected(model, source, rows, images, coordinates)


def _one_ahead(
    model: Pretrained, loaded: Iterator[ViewBlock], batch_size: int
) -> Iterator[tuple[ViewBlock, jax.Array | None]]:
    """Blocks with their embeddings; while one is handled, the devices embed the next."""
    before: tuple[ViewBlock, jax.Array | None] | None = None
    for block in loaded:
        z = model.encode(block.images, batch_size) if len(block.labels) else None
        if before is not None:
            yield before
        # What a worker shares does not outlive its turn.
        before = ViewBlock(block.images[:0], *(np.array(part) for part in block[1:])), z
    if before is not None:
        yield before


def _row(model: Pretrained, block: ViewBlock, z: jax.Array | None, coordinates: str) -> dict[str, np.ndarray]:
    if z is None:
        return {}
    features = np.asarray(model.coordinates(z)[coordinates])[: len(block.labels)]
    return {"features": features, "labels": block.labels, "example_ids": block.example_ids}


def _collected(model: Pretrained, source: EncodedSource, rows: Rows, images: str, coordinates: str) -> Embeddings:
    arrays = rows.arrays()
    if not arrays or not len(arrays["labels"]):
        reason = _unreadable(source, 0).reason
        raise UserError(f"--images={images}: none of {len(source)} images can be read; the first: {reason}")
    missing = np.setdiff1d(np.arange(len(source)), arrays["example_ids"], assume_unique=True)
    return Embeddings(
        features=arrays["features"],
        names=[source.name_of(int(i)) for i in arrays["example_ids"]],
        classes=[source.class_names[label] for label in arrays["labels"]],
        about={
            "model": model.name,
            "weights": model.fingerprint,
            "images": images,
            "coordinates": coordinates,
            "unreadable": [list(_unreadable(source, int(i))) for i in missing],
        },
    )


def _unreadable(source: EncodedSource, index: int) -> Unreadable:
    """Why an image cannot be read."""
    try:
        source.read(index)
    except UnreadableImage as error:
        return Unreadable(source.name_of(index), str(error))
    return Unreadable(source.name_of(index), "could not be read, but can be now")
