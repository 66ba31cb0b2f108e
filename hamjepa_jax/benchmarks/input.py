"""Is any step kept waiting?

    python -m hamjepa_jax.benchmarks.input --json=results/input.json
    python -m hamjepa_jax.benchmarks.input --data_dir=DIR --json=results/input.json

First the host alone, on one core: how many images a second it reads, decodes and makes ready for the device. The images
are JPEGs of 500×375 pixels, cut out of scikit-learn's two sample photographs and kept in memory; and, with --data_dir,
examples of that data set, in random order. The floor is decoding the same bytes with Pillow and nothing else. All run
in this process, by turns; times are medians.

Then, with --data_dir, the training loop: which share of a step it waits for its batch, where the data set lies on the
device and where it is streamed. It runs configs/cifar100.py, so the current directory is that of the repository.
"""

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from hamjepa_jax.benchmarks import command_line, photographs, timing
from hamjepa_jax.data.images import FORMATS, decode
from hamjepa_jax.data.loading import CanvasLoader, CropGroup, CropLoader
from hamjepa_jax.data.sources import EncodedSource, SourceError, open_source

REPEATS = 10
# Photographs of the usual size, and the two global crops of configs/imagenet100.py.
PHOTO_SIZE = (375, 500)
JPEG_QUALITY = 90
NUM_PHOTOS = 32
PHOTO_CANVAS = 256
CROPS = CropGroup(num_views=2, size=224, scale=(0.4, 1.0), ratio=(3 / 4, 4 / 3))
# Examples of the data set, and the canvas of configs/cifar100.py.
NUM_EXAMPLES = 512
CANVAS = 32
# What the training loop runs.
BATCH_SIZE = 32
VIEWS = 2
NUM_STEPS = 12
STREAMED = "--config.data.resident_bytes=0"
# Row of the table → worker processes, and what makes the path that of the row.
FEEDS = {
    "on the device": (0, []),
    "streamed, no worker": (0, [STREAMED]),
    "streamed, one worker": (1, [STREAMED]),
}


class MemorySource(EncodedSource):
    """Image files in memory, all of one class."""

    def __init__(self, files: Sequence[bytes]):
        """Keeps the files."""
        self.class_names = ("image",)
        self.labels = np.zeros(len(files), np.int32)
        self._files = files

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._files)

    def record(self, index: int) -> tuple[bytes, int]:
        """The image file and the label of one example."""
        return self._files[index], 0

    def name_of(self, index: int) -> str:
        """What to call the example in a message."""
        return f"image {index}"


def jpegs(count: int) -> list[bytes]:
    """Cuts of the sample photographs as JPEG files.

    Args:
        count: how many.

    Returns:
        The files.
    """
    files = []
    for photo in photographs.cuts(count, PHOTO_SIZE):
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "JPEG", quality=JPEG_QUALITY)
        files.append(file.getvalue())
    return files


def decode_only(files: Sequence[bytes]) -> None:
    """Decodes image files with Pillow, to the mode that they are in, and does nothing else.

    Args:
        files: the image files.
    """
    for file in files:
        # Asked for any format, Pillow tries more of them first.
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            image.load()


def measure_decoding(
    images_name: str, files: Sequence[bytes], tasks: Mapping[str, Callable[[], Any]], repeats: int
) -> list[dict[str, Any]]:
    """Times what the host does with some images, beside decoding them only.

    Args:
        images_name: what to call the images.
        files: the image files.
        tasks: what is done to all of them, by its name.
        repeats: how often each is timed.

    Returns:
        For each task {"images", "task", "bytes_per_image", "seconds_per_image", "best_seconds_per_image",
        "floor_seconds_per_image", "ratio_to_floor"}, times being medians unless they are called best.
    """
    functions = [lambda: decode_only(files), *tasks.values()]
    seconds = timing.alternate(functions, repeats) / len(files)
    floor, *medians = (float(median) for median in np.median(seconds, axis=1))
    return [
        {
            "images": images_name,
            "task": task,
            "bytes_per_image": round(np.mean([len(file) for file in files])),
            "seconds_per_image": median,
            "best_seconds_per_image": float(best),
            "floor_seconds_per_image": floor,
            "ratio_to_floor": median / floor,
        }
        for task, median, best in zip(tasks, medians, seconds[1:].min(axis=1), strict=True)
    ]


def decode_photographs(count: int, repeats: int) -> list[dict[str, Any]]:
    """Measures what the host does with photographs in memory.

    Args:
        count: number of photographs.
        repeats: how often each task is timed.

    Returns:
        See `measure_decoding`.
    """
    files = jpegs(count)
    source, ids = MemorySource(files), np.arange(count)
    crop = CropLoader(source, groups=(CROPS,), seed=0)
    on_canvas = CanvasLoader(source, canvas_size=PHOTO_CANVAS)
    tasks = {
        "decode": lambda: [decode(file) for file in files],
        f"decode, {CROPS.num_views} crops of {CROPS.size}": lambda: crop(0, ids),
        f"decode, canvas of {PHOTO_CANVAS}": lambda: on_canvas(0, ids),
    }
    height, width = PHOTO_SIZE
    return measure_decoding(f"JPEG {width}×{height}", files, tasks, repeats)


def decode_data_set(name: str, source: EncodedSource, count: int, repeats: int) -> list[dict[str, Any]]:
    """Measures what the host does with examples of a data set.

    Args:
        name: name of the data set.
        source: its training images.
        count: number of examples, drawn at random.
        repeats: how often each task is timed.

    Returns:
        See `measure_decoding`.
    """
    ids = np.random.default_rng(0).permutation(len(source))[:count]
    files = [source.record(int(i))[0] for i in ids]
    on_canvas = CanvasLoader(source, canvas_size=CANVAS)
    tasks = {
        "decode": lambda: [decode(file) for file in files],
        "read, decode": lambda: [source.read(int(i)) for i in ids],
        f"read, decode, canvas of {CANVAS}": lambda: on_canvas(0, ids),
    }
    return measure_decoding(name, files, tasks, repeats)


def training_command(name: str, data_dir: Path, feed: str, workdir: Path) -> list[str]:
    """The command that trains for a few steps.

    Args:
        name: name of the data set.
        data_dir: its directory.
        feed: a name in `FEEDS`.
        workdir: a directory that does not exist yet.

    Returns:
        The command and its arguments.
    """
    num_workers, arguments = FEEDS[feed]
    return [
        *(sys.executable, "-m", "hamjepa_jax.main", "--mode=train", f"--workdir={workdir}"),
        "--config=configs/cifar100.py",
        f"--config.data.name={name}",
        f"--config.data.data_dir={data_dir}",
        f"--config.data.batch_size={BATCH_SIZE}",
        f"--config.data.num_workers={num_workers}",
        "--config.model.dtype=float32",
        f"--config.train.max_steps={NUM_STEPS}",
        *arguments,
    ]


def measure_waiting(name: str, data_dir: Path, feed: str, workdir: Path) -> dict[str, Any]:
    """Trains for a few steps in a process of its own.

    Args:
        name: name of the data set.
        data_dir: its directory.
        feed: a name in `FEEDS`.
        workdir: a directory that does not exist yet.

    Returns:
        {"feed", "num_workers", "batch_size", "seconds_per_step", "input_wait"}, the last a share of the step. The first
        step, which compiles, is left out.

    Raises:
        RuntimeError: if the run fails.
    """
    # What it says is shown only if it fails.
    done = subprocess.run(training_command(name, data_dir, feed, workdir), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{feed}: exit status {done.returncode}: {done.stderr.strip()}")
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "feed": feed,
        "num_workers": FEEDS[feed][0],
        "batch_size": BATCH_SIZE,
        "seconds_per_step": VIEWS * BATCH_SIZE / last["views_per_second"],
        "input_wait": last["input_wait"],
    }


def decoding_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """What the host does, as a Markdown table, times of one image in microseconds, median (best).

    Args:
        measured: what `measure_decoding` returned.

    Returns:
        The table.
    """
    lines = [
        "| images | bytes | one core of the host | images/s | µs | floor, µs | time / floor |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in measured:
        seconds, best, floor = (row[f"{kind}seconds_per_image"] for kind in ("", "best_", "floor_"))
        lines.append(
            f"| {row['images']} | {row['bytes_per_image']:,} | {row['task']} | {1 / seconds:,.0f} "
            f"| {1e6 * seconds:.1f} ({1e6 * best:.1f}) | {1e6 * floor:.1f} | {row['ratio_to_floor']:.2f} |"
        )
    return "\n".join(lines)


def waiting_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """How long the training loop waits, as a Markdown table.

    Args:
        measured: what `measure_waiting` returned.

    Returns:
        The table.
    """
    lines = [
        "| data set | a step of the training loop, s | of it waiting for its batch, ms | share |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in measured:
        seconds, share = row["seconds_per_step"], row["input_wait"]
        lines.append(f"| {row['feed']} | {seconds:.3f} | {1e3 * share * seconds:.1f} | {share:.2%} |")
    return "\n".join(lines)


def main() -> None:
    """Measures decoding and, where there is a data set, waiting; prints the tables and writes the JSON."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--data_dir", type=Path, help="where the data set lies, as in config.data.data_dir")
    parser.add_argument("--name", default="cifar100", help="its name, as in config.data.name (default: cifar100)")
    options = parser.parse_args()

    results: dict[str, list[dict[str, Any]]] = {"decoding": [], "waiting": []}
    if options.data_dir:
        try:
            source = open_source(options.name, "train", data_dir=options.data_dir)
        except SourceError as error:
            parser.error(f"--data_dir={options.data_dir} --name={options.name}: {error}")
        if not isinstance(source, EncodedSource):
            parser.error(f"--name: {options.name} lies in memory, and nothing is left to decode")
        results["decoding"] = decode_data_set(options.name, source, NUM_EXAMPLES, REPEATS)
    results["decoding"] += decode_photographs(NUM_PHOTOS, REPEATS)
    print(decoding_table(results["decoding"]))
    if options.data_dir:
        with tempfile.TemporaryDirectory() as directory:
            for number, feed in enumerate(track(FEEDS, description="runs")):
                workdir = Path(directory) / f"{number}"
                results["waiting"].append(measure_waiting(options.name, options.data_dir, feed, workdir))
        print(f"\n{waiting_table(results['waiting'])}")
    command_line.write_json(options.json, results)


if __name__ == "__main__":
    main()
