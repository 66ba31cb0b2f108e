"""How many views a second does the device make, beside Pillow?

    python -m hamjepa_jax.benchmarks.augment --json=results/augment.json
    python -m hamjepa_jax.benchmarks.augment --cores=4

Both make the same normalised views of the same images, cut out of scikit-learn's two sample photographs. The device
makes a batch at once, from uint8 canvases that it holds, and its time includes drawing the parameters. Pillow makes one
view at a time on one core, and gets the parameters for nothing. Both run in this process, by turns; times are medians.

The floor is what the device's operations take at the full speed of the machine: the matrix products, in blocks, that
resample columns and blur, at the rate of a large product; and what is read and written, the canvas, the view, and the
view once more in each of five loops over its colours, at the rate of changing an array in place. Both rates are
measured in this process.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from rich.progress import track

from hamjepa_jax import build_views
from hamjepa_jax.benchmarks import command_line, photographs, timing
from hamjepa_jax.data import augment, planes, views
from hamjepa_jax.data.loading import CanvasBatch, on_canvases
from hamjepa_jax.data.pipeline import available_cores

# Those of configs/cifar100.py and configs/imagenet100.py, restated so that the script runs from anywhere.
CIFAR = {
    "mean": (0.5071, 0.4867, 0.4408),
    "std": (0.2675, 0.2565, 0.2761),
    "crop_scale": (0.3, 1.0),
    "local_crop_scale": (0.05, 0.3),
    "blur_kernel_size": 3,
}
IMAGENET = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_scale": (0.4, 1.0),
    "local_crop_scale": (0.05, 0.4),
    "blur_kernel_size": 23,
}
# A value of eight bits.
SOLARIZE_FROM = 128
PROBABILITIES = {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 0.5, "solarize": 0.2}
STRENGTHS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "blur_sigma": (0.1, 2.0)}
AUGMENTATION = {
    "name": "multi_crop",
    "crop_ratio": (3 / 4, 4 / 3),
    "solarize_threshold": SOLARIZE_FROM / 255,
    **PROBABILITIES,
    **STRENGTHS,
}
# Four colour operations, and what comes after them.
COLOR_LOOPS = 5
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
HUE = augment.COLOR_OPERATIONS.index("hue")


class Case(NamedTuple):
    """Views of one kind.

    Attributes:
        name: its row of the table.
        settings: `CIFAR` or `IMAGENET`.
        image_size: rows and columns of the images.
        canvas: side of the canvas that they lie on.
        size: side of the views.
        local: whether they are local views.
        batch: views that a CPU makes at once.
        accelerator_batch: views that an accelerator makes at once.
    """

    name: str
    settings: Mapping[str, Any]
    image_size: tuple[int, int]
    canvas: int
    size: int
    local: bool
    batch: int
    accelerator_batch: int


CASES = (
    Case("32 px, CIFAR", CIFAR, (32, 32), 32, 32, False, 512, 1024),
    Case("224 px, ImageNet", IMAGENET, (375, 500), 256, 224, False, 32, 256),
    Case("96 px local, ImageNet", IMAGENET, (375, 500), 256, 96, True, 64, 512),
)


def data_config(case: Case) -> ConfigDict:
    """The case as a config's group `data`, with one view of each image.

    Args:
        case: the case.

    Returns:
        The config.
    """
    settings = dict(case.settings)
    mean, std = settings.pop("mean"), settings.pop("std")
    return ConfigDict(
        {
            "num_global_views": 0 if case.local else 1,
            "num_local_views": 1 if case.local else 0,
            "view_size": case.size,
            "local_view_size": case.size,
            "canvas_size": case.canvas,
            "mean": mean,
            "std": std,
            "augmentation": AUGMENTATION | settings,
        }
    )


def for_pillow(drawn: views.CroppedView, kernel_size: int) -> list[views.CroppedView]:
    """Takes what was drawn for the device apart, and leaves out what Pillow need not do.

    Args:
        drawn: the parameters on the host, arrays (B, ...).
        kernel_size: length of the blur's kernel.

    Returns:
        The parameters of each view, in Python's own types. There are no colour operations where all are neutral, since
        torchvision skips them too. The standard deviation of the blur is that of the kernel, cut off where it ends,
        since Pillow does not cut its own off.
    """
    parameters = []
    distances = np.arange(kernel_size) - kernel_size // 2
    for i in range(len(drawn.appearance.flip)):
        box, look = jax.tree.map(lambda array, i=i: array[i].tolist(), drawn)
        if look.blur_sigma > 0:
            weights = np.exp(-0.5 * np.square(distances / look.blur_sigma))
            look = look._replace(blur_sigma=float(np.sqrt(np.average(np.square(distances), weights=weights))))
        jitter = zip(look.operations, look.factors, strict=True)
        if all(factor == (0.0 if operation == HUE else 1.0) for operation, factor in jitter):
            look = look._replace(operations=[], factors=[])
        parameters.append(views.CroppedView(box, look))
    return parameters


def turn_hue(image: Image.Image, factor: float) -> Image.Image:
    """Turns the hue.

    Args:
        image: an image in mode RGB.
        factor: turn, in [−½, ½] of the circle.

    Returns:
        The image.
    """
    hue, saturation, value = image.convert("HSV").split()
    # Eight bits wrap around, as the circle does.
    hue = Image.fromarray(np.asarray(hue) + np.uint8(round(255 * factor) % 256))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def render_with_pillow(image: Image.Image, parameters: views.CroppedView, size: int) -> Image.Image:
    """Makes a view, up to the normalisation.

    Args:
        image: an image in mode RGB.
        parameters: one of those that `for_pillow` returned.
        size: height and width of the view.

    Returns:
        The view, in mode RGB, or L if it has lost its colours.
    """
    box, look = parameters
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=edges)
    if look.flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for operation, factor in zip(look.operations, look.factors, strict=True):
        view = turn_hue(view, factor) if operation == HUE else ENHANCERS[operation](view).enhance(factor)
    if look.grayscale:
        view = view.convert("L")
    if look.blur_sigma:
        view = view.filter(ImageFilter.GaussianBlur(look.blur_sigma))
    return ImageOps.solarize(view, SOLARIZE_FROM) if look.solarize else view


def pillow_path(
    photos: Sequence[np.ndarray], parameters: Sequence[views.CroppedView], case: Case
) -> Callable[[], np.ndarray]:
    """Makes a batch with Pillow, into an array that is allocated once.

    Args:
        photos: the images, uint8 (H, W, 3).
        parameters: what `for_pillow` returned.
        case: the case.

    Returns:
        A function to the normalised views (B, size, size, 3).
    """
    # One factor for each value of a row: numpy is slow along an axis of three.
    std = np.asarray(case.settings["std"], np.float32)
    scale = np.tile(1.0 / (255.0 * std), case.size)
    offset = np.tile(-np.asarray(case.settings["mean"], np.float32) / std, case.size)
    rows = np.empty((len(photos), case.size, case.size * 3), np.float32)
    decoded = [Image.fromarray(photo) for photo in photos]

    def make() -> np.ndarray:
        for image, view_parameters, out in zip(decoded, parameters, rows, strict=True):
            pixels = np.asarray(render_with_pillow(image, view_parameters, case.size))
            if pixels.ndim == 2:
                pixels = np.repeat(pixels, 3, axis=1)
            np.multiply(pixels.reshape(out.shape), scale, out=out)
            np.add(out, offset, out=out)
        return rows.reshape(len(photos), case.size, case.size, 3)

    return make


def prepare(case: Case, batch_size: int) -> tuple[Callable[[], jax.Array], Callable[[], np.ndarray], float]:
    """Compiles the device path, and draws the same parameters for Pillow.

    Args:
        case: the case.
        batch_size: number of views.

    Returns:
        A function that makes the views on the device and waits for them, (1, B, size, size, 3); one that makes them
        with Pillow, (B, size, size, 3); and the seconds that compiling took.
    """
    config = data_config(case)
    groups = build_views.view_groups(config)
    photos = photographs.cuts(batch_size, case.image_size)
    canvases, sizes = on_canvases([{"image": photo} for photo in photos], case.canvas)
    batch = jax.device_put(CanvasBatch(np.arange(batch_size, dtype=np.int32), canvases, sizes))
    key = jax.random.key(0)
    make_views = jax.jit(build_views.make_views(config, groups))
    start = time.perf_counter()
    compiled = make_views.lower(key, None, batch).compile()
    compile_seconds = time.perf_counter() - start

    (drawn,) = jax.device_get(jax.jit(lambda: views.draw_views(key, batch.sizes, batch.example_ids, groups))())
    drawn = jax.tree.map(lambda array: array[0], drawn)
    on_canvas = [canvas[:rows, :columns] for canvas, (rows, columns) in zip(canvases, sizes, strict=True)]
    parameters = for_pillow(drawn, case.settings["blur_kernel_size"])
    return (
        lambda: compiled(key, None, batch)[0].block_until_ready(),
        pillow_path(on_canvas, parameters, case),
        compile_seconds,
    )


def floor_seconds(case: Case, operations_per_second: float, bytes_per_second: float) -> float:
    """The time that a view takes at least, see the module's docstring.

    Args:
        case: the case.
        operations_per_second: see `timing.matrix_rate`.
        bytes_per_second: see `timing.memory_rate`.

    Returns:
        The time of one view.
    """
    outputs = case.size**2 * 3
    resample = 2 * outputs * planes.crop_window(case.canvas, case.size)
    reach = planes.blocks(case.size)[1] + case.settings["blur_kernel_size"] - 1
    blur = AUGMENTATION["blur"] * 2 * (2 * outputs * reach)
    view_bytes = 4 * case.size**2 * 3
    moved = case.canvas**2 * 3 + view_bytes + COLOR_LOOPS * 2 * view_bytes
    return (resample + blur) / operations_per_second + moved / bytes_per_second


def measure(case: Case, repeats: int, operations_per_second: float) -> dict[str, Any]:
    """Times both paths of a case by turns.

    Args:
        case: the case.
        repeats: how often each is timed.
        operations_per_second: see `timing.matrix_rate`.

    Returns:
        Name and sizes of the case; seconds per view of both paths, medians and `best_…`, and of the floor; the ratios
        of the medians; and the time to compile.
    """
    on_cpu = jax.default_backend() == "cpu"
    batch_size = case.batch if on_cpu else case.accelerator_batch
    *paths, compile_seconds = prepare(case, batch_size)
    device, pillow = timing.alternate(paths, repeats) / batch_size
    # A CPU works on one view at a time, which stays in its cache.
    worked_on = 4 * case.size**2 * 3 * (1 if on_cpu else batch_size)
    floor = floor_seconds(case, operations_per_second, timing.memory_rate(worked_on))
    return {
        "name": case.name,
        "size": case.size,
        "canvas": case.canvas,
        "batch": batch_size,
        "device_seconds_per_view": float(np.median(device)),
        "best_device_seconds_per_view": float(device.min()),
        "pillow_seconds_per_view": float(np.median(pillow)),
        "best_pillow_seconds_per_view": float(pillow.min()),
        "floor_seconds_per_view": floor,
        "ratio_to_pillow": float(np.median(pillow) / np.median(device)),
        "ratio_to_floor": float(np.median(device) / floor),
        "compile_seconds": round(compile_seconds, 2),
    }


def markdown_table(cases: Sequence[Mapping[str, Any]]) -> str:
    """The measurements as a Markdown table, times of one view in microseconds, median (best).

    Args:
        cases: what `measure` returned.

    Returns:
        The table.
    """
    columns = ("views/s", "device, µs", "Pillow, µs", "times Pillow", "floor, µs", "device / floor", "compile, s")
    lines = [f"| views | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for case in cases:
        device, pillow = (
            f"{1e6 * case[f'{path}_seconds_per_view']:.1f} ({1e6 * case[f'best_{path}_seconds_per_view']:.1f})"
            for path in ("device", "pillow")
        )
        lines.append(
            f"| {case['name']} | {1 / case['device_seconds_per_view']:,.0f} | {device} | {pillow} "
            f"| {case['ratio_to_pillow']:.2f} | {1e6 * case['floor_seconds_per_view']:.1f} "
            f"| {case['ratio_to_floor']:.1f} | {case['compile_seconds']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures every case, prints the table and writes the JSON."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=10, help="how often each path is timed (default: 10)")
    parser.add_argument("--cores", type=int, default=1, help="cores that the process may use (default: 1)")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats: must be at least 1")
    if not 1 <= options.cores <= available_cores():
        parser.error(f"--cores: must be between 1 and the {available_cores()} that this process may use")
    timing.use_cores(options.cores)

    operations_per_second = timing.matrix_rate()
    measured = [measure(case, options.repeats, operations_per_second) for case in track(CASES, description="cases")]
    print(markdown_table(measured))
    command_line.write_json(options.json, {"cases": measured})


if __name__ == "__main__":
    main()
