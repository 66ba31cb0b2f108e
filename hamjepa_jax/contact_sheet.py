"""A picture of what the encoder sees: some images beside their views, with the parameters that were drawn."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hamjepa_jax import build_views, environment
from hamjepa_jax.data import views
from hamjepa_jax.data.augment import COLOR_OPERATIONS
from hamjepa_jax.data.loading import CanvasBatch, CanvasLoader, CropLoader, CroppedBatch, read_or_next
from hamjepa_jax.data.pipeline import SkippedRecords, index_batches
from hamjepa_jax.data.sources import Source
from hamjepa_jax.data.views import Appearance, CropBox, CroppedView, FilmedView, ViewGroup
from hamjepa_jax.data.warp import WarpedView
from hamjepa_jax.errors import UserError

NUM_IMAGES = 8
FEW_VIEWS = 4
INCHES_PER_IMAGE = 1.9
# Larger images are shrunk to it.
ORIGINAL_SIZE = 512


def draw(
    source: Source,
    groups: tuple[ViewGroup, ...],
    load: CanvasLoader | CropLoader,
    skipped: SkippedRecords,
    *,
    batch_size: int,
    seed: int,
    title: str,
    path: Path,
) -> None:
    """Draws the first images of the first batch, and their views in the first step.

    Args:
        source: the images.
        groups: how views are drawn and rendered.
        load: reads the images of a batch.
        skipped: is told of what could not be read.
        batch_size: examples in a batch.
        seed: seed of the run.
        title: stands above the picture.
        path: where the PNG goes.

    Raises:
        UserError: if the picture cannot be written.
    """
    ids = np.asarray(index_batches(len(source), batch_size=batch_size, seed=seed)[0])[:NUM_IMAGES]
    batch, unreadable = load(0, ids)
    skipped.add(unreadable)
    originals, _ = CanvasLoader(source, canvas_size=ORIGINAL_SIZE)(0, ids)

    view_key, _ = jax.random.split(jax.random.key(seed))
    drawn = environment.jit_quickly(partial(_views, groups=groups))
    parameters, rendered = drawn(jax.random.fold_in(view_key, 0), batch)
    if isinstance(batch, CroppedBatch):
        parameters = tuple(
            CroppedView(CropBox(*np.transpose(boxes, (2, 1, 0))), appearance)
            for boxes, appearance in zip(batch.boxes, parameters, strict=True)
        )
    labels = [read_or_next(source, int(i), [])["label"] for i in ids]
    names = [f"{i}: {source.class_names[label]}" for i, label in zip(ids, labels, strict=True)]
    _draw_sheet(title, originals, batch.sizes, names, jax.device_get(parameters), jax.device_get(rendered), path)


def _views(key: jax.Array, batch: CanvasBatch | CroppedBatch, *, groups: tuple[Any, ...]) -> tuple[Any, Any]:
    parameters = views.draw_views(key, batch.sizes, batch.example_ids, groups)
    rendered = build_views.render(batch, parameters, groups)
    # Keys cannot leave the device as numbers, and say nothing to a person.
    parameters = tuple(p._replace(noise_key=()) if isinstance(p, WarpedView) else p for p in parameters)
    return parameters, rendered


def _draw_sheet(
    title: str,
    originals: CanvasBatch,
    full_sizes: np.ndarray,
    names: Sequence[str],
    parameters: tuple[Any, ...],
    rendered: tuple[np.ndarray, ...],
    path: Path,
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = [
        (view, _parameters_of(group_parameters, view_number))
        for group_views, group_parameters in zip(rendered, parameters, strict=True)
        for view_number, view in enumerate(group_views)
    ]
    # Two examples share a row where there are few views.
    per_row = 2 if len(columns) <= FEW_VIEWS else 1
    shape = (-(-len(names) // per_row), per_row * (1 + len(columns)))
    inches = (INCHES_PER_IMAGE * shape[1], (INCHES_PER_IMAGE + 0.55) * shape[0] + 0.5)
    figure, grid = pyplot.subplots(*shape, figsize=inches, layout="constrained", squeeze=False)
    figure.suptitle(
        f"{title}: first examples of the first step\neach image is followed by its views; boxes show what was cut out",
        fontsize=9,
    )
    grid = grid.reshape(-1, 1 + len(columns))
    for axes in grid[len(names) :].flat:
        axes.remove()
    for row, name in enumerate(names):
        height, width = originals.sizes[row]
        _show(grid[row, 0], originals.images[row, :height, :width], name)
        scale = height / full_sizes[row, 0]
        for column, (view, of_example) in enumerate(columns):
            drawn = of_example(row)
            color = f"C{column}"
            _show(grid[row, 1 + column], np.clip(view[row], 0.0, 1.0), describe(drawn), color=color)
            if isinstance(drawn, CroppedView):
                top, left, box_height, box_width = (float(value) * scale for value in drawn.box)
                corner = (left - 0.5, top - 0.5)
                box = pyplot.Rectangle(corner, box_width, box_height, fill=False, edgecolor=color, linewidth=1.2)
                grid[row, 0].add_patch(box)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A picture that was not finished is none.
        replacement = path.with_suffix(".tmp")
        figure.savefig(replacement, dpi=110, format="png")
        replacement.replace(path)
    except OSError as error:
        raise UserError(f"--workdir={path.parent}: cannot be written ({error.strerror})") from error
    finally:
        pyplot.close(figure)


def _parameters_of(group_parameters: Any, view_number: int):
    return lambda row: jax.tree.map(lambda leaf: leaf[view_number, row], group_parameters)


def _show(axes: Any, image: np.ndarray, caption: str, color: str = "k") -> None:
    gray = image.shape[-1] == 1
    limits = {"vmin": 0, "vmax": 255 if image.dtype == np.uint8 else 1}
    axes.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, interpolation="nearest", **limits)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(color)
    axes.set_title(caption, fontsize=5.5, pad=3, loc="left")


def describe(parameters: CroppedView | FilmedView | WarpedView) -> str:
    """The parameters of one view in words, in the order in which they are applied.

    Args:
        parameters: those of one view, scalars.

    Returns:
        Two or three short lines; what leaves the image as it is, is left out.
    """
    if isinstance(parameters, WarpedView):
        rows, columns = parameters.shift
        return (
            f"turn {parameters.angle:+.0f}°, scale {parameters.scale[0]:.2f} × {parameters.scale[1]:.2f}\n"
            f"shift {rows:+.2f}, {columns:+.2f}, contrast {parameters.contrast:.2f}"
        )
    if isinstance(parameters, FilmedView):
        return f"image {parameters.number} of the film"
    box, appearance = parameters
    lines = [f"crop {box.height}×{box.width} at {box.top}, {box.left}" + (", mirrored" if appearance.flip else "")]
    lines.append(_color_words(appearance))
    effects = ["grey"] if appearance.grayscale else []
    effects += [f"blur {appearance.blur_sigma:.2f}"] if appearance.blur_sigma > 0 else []
    effects += ["solarised"] if appearance.solarize else []
    lines.append(", ".join(effects))
    return "\n".join(line for line in lines if line)


def _color_words(appearance: Appearance) -> str:
    names = [COLOR_OPERATIONS[index] for index in appearance.operations]
    changes = [
        f"{name} {factor:+.2f}" if name == "hue" else f"{name} {factor:.2f}"
        for name, factor in zip(names, appearance.factors, strict=True)
        if factor != (0.0 if name == "hue" else 1.0)
    ]
    halves = [", ".join(changes[:2]), ", ".join(changes[2:])]
    return "\n".join(half for half in halves if half)
