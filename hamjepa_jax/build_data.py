"""From the config's group `data` to sources of images, and the batches that the host reads."""

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hamjepa_jax.data.loading import CanvasLoader, CropGroup, CropLoader
from hamjepa_jax.data.pipeline import Batches, SkippedRecords, available_cores, load_into_memory
from hamjepa_jax.data.sources import ArraySource, Source, SourceError, check_same_classes, open_source
from hamjepa_jax.errors import UserError, require


def sources(config: ConfigDict) -> tuple[Source, Source]:
    """Opens the training and the test images.

    Args:
        config: the group `data`.

    Returns:
        Both sources.

    Raises:
        UserError: naming the config key, if they cannot be opened or do not fit together.
    """
    opened = []
    for key in ("train_split", "test_split"):
        try:
            # On the command line a field is unset by giving nothing.
            source = open_source(
                config.name, config[key], data_dir=config.data_dir or None, class_list=config.class_list or None
            )
        except SourceError as error:
            field = key if error.argument == "split" else error.argument
            raise UserError(f"config.data.{field}: {error}") from None
        opened.append(source)
    try:
        check_same_classes(*opened, names=(config.train_split, config.test_split))
    except SourceError as error:
        raise UserError(f"config.data.{error.argument}: {error}") from None
    channels = opened[0].images.shape[-1] if isinstance(opened[0], ArraySource) else 3
    for key in ("mean", "std"):
        require(len(config[key]) == channels, f"data.{key}", f"must be {channels} numbers, one for each channel")
    return tuple(opened)


def fits_on_device(config: ConfigDict, source: Source) -> bool:
    """Whether a data set is to lie on the device whole.

    Args:
        config: the group `data`.
        source: the images.

    Returns:
        True if all canvases take at most `config.resident_bytes`.
    """
    if config.canvas_size is None:
        return False
    return len(source) * config.canvas_size**2 * len(config.mean) <= config.resident_bytes


def in_memory(config: ConfigDict, source: Source, console: Console, name: str) -> Source:
    """Decodes a data set that is to lie on the device, with a progress bar; leaves another as it is.

    Args:
        config: the group `data`.
        source: the images.
        console: where progress is shown.
        name: what to call the images there.

    Returns:
        The source, in memory or not.

    Raises:
        UserError: if too many images cannot be read.
    """
    if isinstance(source, ArraySource) or not fits_on_device(config, source):
        return source
    columns = (TextColumn("reading {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=len(source))
        loaded = load_into_memory(
            source,
            skipped_records(config, console),
            canvas_size=config.canvas_size,
            num_workers=num_workers(config),
            progress=lambda count: progress.update(task, completed=count),
        )
    small = int(np.sum(loaded.sizes.min(axis=1) < config.view_size))
    console.print(f"{name}: {len(loaded):,} images of {loaded.num_classes} classes, kept on the device")
    if small:
        console.print(
            f"{name}: {small:,} images are smaller than a view, {config.view_size} pixels, and are enlarged; "
            "--config.data.view_size sets it"
        )
    return loaded


def skipped_records(config: ConfigDict, console: Console) -> SkippedRecords:
    """Counts what cannot be read, and tells of it.

    Args:
        config: the group `data`.
        console: where each record is named.

    Returns:
        The count, at zero.
    """
    return SkippedRecords(config.max_corrupt, report=console.print)


def num_workers(config: ConfigDict) -> int:
    """The number of worker processes: that of the config, or one for each core."""
    return available_cores() if config.num_workers is None else config.num_workers


def loader(config: ConfigDict, source: Source, *, seed: int) -> CanvasLoader | CropLoader:
    """What reads the images of a batch.

    Args:
        config: the group `data`.
        source: the images.
        seed: seed of the boxes that the host cuts out.

    Returns:
        The loader of whole images, or of crops where the images are too large to be sent whole.
    """
    if config.canvas_size is None:
        return CropLoader(source, groups=_crop_groups(config), seed=seed)
    return CanvasLoader(source, canvas_size=config.canvas_size)


def batches(
    config: ConfigDict,
    source: Source,
    skipped: SkippedRecords,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """The batches of a data set that is not kept on the device.

    Args:
        config: the group `data`.
        source: the images.
        skipped: is told of what could not be read.
        seed: seed of the order, and of the boxes that the host cuts out.
        process_index: number of this process.
        process_count: number of processes.

    Returns:
        An iterator over what `loader` reads.
    """
    return Batches(
        loader(config, source, seed=seed),
        len(source),
        skipped,
        batch_size=config.batch_size,
        seed=seed,
        num_workers=num_workers(config),
        process_index=process_index,
        process_count=process_count,
    )


def kinds_of_views(config: ConfigDict) -> list[tuple[int, int, str]]:
    """The kinds of views that a config asks for.

    Args:
        config: the group `data`.

    Returns:
        Number of views, their size, and the field of the augmentation with their crop scale: global, then local ones.
    """
    kinds = [
        (config.num_global_views, config.view_size, "crop_scale"),
        (config.num_local_views, config.local_view_size, "local_crop_scale"),
    ]
    return [kind for kind in kinds if kind[0]]


def _crop_groups(config: ConfigDict) -> tuple[CropGroup, ...]:
    return tuple(
        CropGroup(count, size, tuple(config.augmentation[scale]), tuple(config.augmentation.crop_ratio))
        for count, size, scale in kinds_of_views(config)
    )
