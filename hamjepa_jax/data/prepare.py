"""Converts an image folder to a TFDS data set that is quick to read, or checks that every image of one can be read.

    python -m hamjepa_jax.data.prepare --source=imagenet100 --output=data --name=imagenet100
    python -m hamjepa_jax.data.prepare --source=archive.zip --output=data --name=birds --shorter_side=256
    python -m hamjepa_jax.data.prepare --validate --source=imagenet100
    python -m hamjepa_jax.data.prepare --validate --source=data --name=imagenet100 --split=train

The source is a folder DIR/SPLIT/CLASS/IMAGE, a zip file of one, or a TFDS data set stored as array_record. Every image
is written as RGB: JPEG and PNG files that already are, upright and small enough, keep their bytes, all others become
JPEG of quality 95. Unreadable images are left out and listed. A conversion that was stopped goes on where it was when
the same command is given again.

Exit codes: 0 success, 1 unreadable images found by --validate, 2 a mistake in the command or the data, 130 stopped by
Ctrl-C.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from hamjepa_jax.data import image_folder, tfds_source
from hamjepa_jax.data.conversion import Conversion, in_order, progress_bar, progressing, thread_pool
from hamjepa_jax.data.images import UnreadableImage
from hamjepa_jax.data.sources import EncodedSource, SourceError, check_same_classes, open_source
from hamjepa_jax.errors import UserError

COMMAND = "python -m hamjepa_jax.data.prepare"
# Argument of `open_source` → option of the command.
OPTION = {"data_dir": "source", "name": "source"}


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        """Raises a UserError."""
        raise UserError(f"{message}; see {COMMAND} --help")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses and checks the command line.

    Args:
        arguments: without the program's name.

    Returns:
        The options.

    Raises:
        UserError: if an option is unknown, missing or out of range.
    """
    parser = Parser(
        prog=COMMAND,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add("--source", type=Path, required=True, metavar="DIR", help="image folder, zip file or TFDS data")
    add("--output", type=Path, metavar="DIR", help="data directory: the data set goes to DIR/NAME/1.0.0")
    add("--name", help="name of the data set: small letters, digits and _")
    add("--split", help="only these splits, separated by commas (default: all)")
    add("--class_list", type=Path, metavar="FILE", help="only these classes, one name a line, in this order")
    add("--shorter_side", type=int, metavar="N", help="shrink larger images to it, pixels (default: keep their size)")
    add("--images_per_shard", type=int, default=4096, help="images in one file of the data set (default: 4096)")
    add("--workers", type=int, default=threads, help=f"threads (default: one a core, {threads})")
    add("--validate", action="store_true", help="only read every image, and report; nothing is written")
    options = parser.parse_args(arguments)
    for option in ("shorter_side", "images_per_shard", "workers"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise UserError(f"--{option}: must be at least 1, got {value}")
    if options.name == "digits":
        raise UserError("--name: 'digits' is the data set that comes with scikit-learn; take another")
    if not options.validate:
        for option in ("output", "name"):
            if getattr(options, option) is None:
                raise UserError(f"--{option}: missing; give it, or --validate to only check the images")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", options.name):
            raise UserError(f"--name: must be small letters, digits and _, a letter first, got {options.name!r}")
    elif options.output is not None:
        raise UserError("--output: does not go with --validate, which writes nothing")
    options.source = options.source.expanduser()
    return options


def open_splits(options: argparse.Namespace) -> dict[str, EncodedSource]:
    """Opens the splits of the source.

    Args:
        options: the options of the command.

    Returns:
        Name of the split → source.

    Raises:
        SourceError: if one cannot be opened.
    """
    name = options.name if options.validate else None
    splits = image_folder.splits_of(options.source, options.split and options.split.split(",")[0])
    if splits is None:
        if name is None and not (options.source / tfds_source.INFO_FILE).exists():
            there = tfds_source.prepared_in(options.source)
            if len(there) > 1:
                one = next(iter(there.values()))
                raise SourceError("data_dir", f"{options.source} holds several data sets; give one, such as {one}")
            name = next(iter(there), "NAME")
        directory = tfds_source.find(name or "", options.source)
        splits = list(tfds_source.open_builder(directory).info.splits)
    wanted = options.split.split(",") if options.split else sorted(splits, key=lambda split: (split != "train", split))
    return {
        split: open_source(name or "", split, data_dir=options.source, class_list=options.class_list)
        for split in wanted
    }


def print_unreadable(unreadable: Sequence[tuple[str, str]]) -> None:
    """Lists images that cannot be read, with the reasons."""
    if unreadable:
        print(f"unreadable images: {len(unreadable)}")
    for name, reason in unreadable:
        print(f"  {name}: {reason}")


def prepare(options: argparse.Namespace, sources: Mapping[str, EncodedSource]) -> int:
    """Converts all splits, and says how to train from the result.

    Args:
        options: the options of the command.
        sources: name of the split → its images.

    Returns:
        The exit code.

    Raises:
        SourceError: if the splits have different classes.
        UserError: if the data set cannot be written.
    """
    (first, train), *others = sources.items()
    for split, source in others:
        check_same_classes(train, source, names=(first, split))
    output = options.output.expanduser()
    try:
        conversion = Conversion(
            sources,
            output,
            options.name,
            shorter_side=options.shorter_side,
            images_per_shard=options.images_per_shard,
        )
        if conversion.finished:
            print("the data set is complete already; nothing was done")
        else:
            conversion.run(options.workers)
    except (OSError, RuntimeError) as error:
        reason = " ".join(f"{error}".split())[:200]
        raise UserError(f"--output: {output / options.name} cannot be written ({reason})") from error
    unreadable = conversion.unreadable()
    print_unreadable(unreadable)
    counts = ", ".join(f"{split} {conversion.records(split)}" for split in sources)
    print(f"{conversion.final}: {counts} images of {len(train.class_names)} classes; {len(unreadable)} left out")
    print(f"to train from it: --config.data.name={options.name} --config.data.data_dir={output}")
    return 0


class ImageSummary(NamedTuple):
    """What one readable image adds to the report.

    Attributes:
        height: pixels.
        width: pixels.
        sums: the sum of each channel, int64 (3,).
    """

    height: int
    width: int
    sums: np.ndarray


def summarise(source: EncodedSource, index: int) -> ImageSummary | tuple[str, str]:
    """Reads one image.

    Args:
        source: the data.
        index: number of the image.

    Returns:
        Its summary, or name and reason if it cannot be read.
    """
    try:
        image = source[index]["image"]
    except UnreadableImage as error:
        return source.name_of(index), str(error)
    return ImageSummary(*image.shape[:2], image.sum(axis=(0, 1), dtype=np.int64))


def validate(sources: Mapping[str, EncodedSource], workers: int) -> int:
    """Reads every image of every split, and reports.

    Args:
        sources: name of the split → its images.
        workers: number of threads.

    Returns:
        The exit code: 1 if an image cannot be read.
    """
    unreadable = []
    for split, source in sources.items():
        sizes, sums, pixels, broken = [], np.zeros(3, np.int64), 0, []
        with thread_pool(workers) as executor, progress_bar() as progress:
            task = progress.add_task(split, total=len(source))
            found = in_order(executor, partial(summarise, source), range(len(source)))
            for summary in progressing(found, progress, task):
                if isinstance(summary, ImageSummary):
                    sizes.append((summary.height, summary.width))
                    sums += summary.sums
                    pixels += summary.height * summary.width
                else:
                    broken.append(summary)
        print(f"{split}: {len(source)} images, {len(broken)} unreadable, {len(source.class_names)} classes")
        if sizes:
            sizes.sort(key=lambda size: size[0] * size[1])
            (low_height, low_width), (high_height, high_width) = sizes[0], sizes[-1]
            means = ", ".join(f"{mean:.5f}" for mean in sums / (pixels * 255))
            print(f"  height × width from {low_height}×{low_width} to {high_height}×{high_width} pixels")
            print(f"  means of red, green, blue, as parts of 255: {means}")
        unreadable += broken
    print_unreadable(unreadable)
    return 1 if unreadable else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; mistakes and Ctrl-C end with one line on stderr.

    Args:
        arguments: without the program's name; None: those of the process.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = parse_arguments(arguments)
        sources = open_splits(options)
        return validate(sources, options.workers) if options.validate else prepare(options, sources)
    except SourceError as error:
        print(f"error: --{OPTION.get(error.argument, error.argument)}: {error}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; to go on, give the same command again: {COMMAND} {shlex.join(arguments)}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
