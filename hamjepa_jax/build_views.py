"""From the config's groups `data` and `data.augmentation` to the functions that draw and render views."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hamjepa_jax import environment
from hamjepa_jax.build_data import kinds_of_views
from hamjepa_jax.data import augment, views
from hamjepa_jax.data.loading import CanvasBatch, CroppedBatch
from hamjepa_jax.data.pendulum import IMAGE_SIZE, NUM_VIEWS
from hamjepa_jax.data.views import ViewGroup
from hamjepa_jax.data.warp import WarpedView, draw_warp, render_warp
from hamjepa_jax.errors import require, require_known
from hamjepa_jax.step import Views


class Dataset(NamedTuple):
    """A data set that lies on the device whole.

    Attributes:
        images: uint8 (N, C, C, channels), each at the top left of a square canvas.
        sizes: rows and columns of each image, int32 (N, 2).
    """

    images: np.ndarray | jax.Array
    sizes: np.ndarray | jax.Array


def view_groups(config: ConfigDict) -> tuple[ViewGroup, ...]:
    """How the views are drawn and rendered.

    Args:
        config: the group `data`.

    Returns:
        The groups: global views, and local views if there are any.

    Raises:
        UserError: naming the config key, if a value is not allowed.
    """
    require_known(config.augmentation.name, AUGMENTATIONS, "data.augmentation.name")
    return AUGMENTATIONS[config.augmentation.name](config)


def _digit_groups(config: ConfigDict) -> tuple[ViewGroup, ...]:
    require(config.num_local_views == 0, "data.num_local_views", "must be 0, because digits are never cropped")
    settings = config.augmentation.to_dict()
    del settings["name"]
    noise_std = settings.pop("noise_std")

    def draw(key: jax.Array, image_size: jax.Array, view_number: jax.Array) -> WarpedView:
        del image_size, view_number
        return draw_warp(key, **settings)

    def render(image: jax.Array, parameters: WarpedView) -> jax.Array:
        return render_warp(_unit_range(image), parameters, size=config.view_size, noise_std=noise_std)

    return (ViewGroup(config.num_global_views, draw, render),)


def _multi_crop_groups(config: ConfigDict) -> tuple[ViewGroup, ...]:
    settings = config.augmentation.to_dict()
    del settings["name"]
    ratio = settings.pop("crop_ratio")
    scales = {key: settings.pop(key) for key in ("crop_scale", "local_crop_scale")}
    kernel_size, threshold = settings.pop("blur_kernel_size"), settings.pop("solarize_threshold")
    _check_multi_crop(config)
    finish = {"blur_kernel_size": kernel_size, "solarize_threshold": threshold}

    def group(count: int, size: int, scale: tuple[float, float]) -> ViewGroup:
        def draw(key: jax.Array, image_size: jax.Array, view_number: jax.Array) -> views.CroppedView | views.Appearance:
            del view_number
            crop_key, appearance_key = jax.random.split(key)
            appearance = views.draw_appearance(appearance_key, **settings)
            if config.canvas_size is None:
                return appearance
            return views.CroppedView(views.draw_crop(crop_key, image_size, scale=scale, ratio=ratio), appearance)

        def render(image: jax.Array, parameters: views.CroppedView | views.Appearance) -> jax.Array:
            if config.canvas_size is None:
                return views.apply_appearance(_unit_range(image), parameters, **finish)
            return views.render_crop(image, parameters, size=size, **finish)

        return ViewGroup(count, draw, render)

    return tuple(group(count, size, scales[scale]) for count, size, scale in kinds_of_views(config))


def _check_multi_crop(config: ConfigDict) -> None:
    settings = config.augmentation
    require(len(config.mean) == 3, "data.mean", f"must be three numbers, for images in colour, got {config.mean}")
    for key in ("crop_scale", "local_crop_scale", "crop_ratio", "blur_sigma"):
        bounds = settings[key]
        require(
            len(bounds) == 2 and 0 < bounds[0] <= bounds[1],
            f"data.augmentation.{key}",
            f"must be two positive numbers, the smaller first, got {bounds}",
        )
    for key in ("crop_scale", "local_crop_scale"):
        require(settings[key][1] <= 1, f"data.augmentation.{key}", f"must be at most 1, got {settings[key]}")
    for key in ("flip", "jitter", "grayscale", "blur", "solarize"):
        require(0 <= settings[key] <= 1, f"data.augmentation.{key}", f"must be in [0, 1], got {settings[key]}")
    for key in ("brightness", "contrast", "saturation"):
        require(settings[key] >= 0, f"data.augmentation.{key}", f"must not be negative, got {settings[key]}")
    require(0 <= settings.hue <= 0.5, "data.augmentation.hue", f"must be in [0, 0.5], got {settings.hue}")
    kernel_size, smallest = settings.blur_kernel_size, min(size for _, size, _ in kinds_of_views(config))
    require(
        kernel_size % 2 == 1 and 1 <= kernel_size <= 2 * smallest - 1,
        "data.augmentation.blur_kernel_size",
        f"must be odd and at most {2 * smallest - 1} for views of {smallest} pixels, got {kernel_size}",
    )


def _film_groups(config: ConfigDict) -> tuple[ViewGroup, ...]:
    for key, only in (("num_global_views", NUM_VIEWS), ("num_local_views", 0), ("view_size", IMAGE_SIZE)):
        require(config[key] == only, f"data.{key}", f"must be {only}, because films are made so, got {config[key]}")

    def draw(key: jax.Array, image_size: jax.Array, view_number: jax.Array) -> views.FilmedView:
        del key, image_size
        return views.FilmedView(view_number)

    def render(image: jax.Array, parameters: views.FilmedView) -> jax.Array:
        return _unit_range(views.render_film(image, parameters, size=config.view_size))

    return (ViewGroup(config.num_global_views, draw, render),)


AUGMENTATIONS: dict[str, Callable[[ConfigDict], tuple[ViewGroup, ...]]] = {
    "digit": _digit_groups,
    "film": _film_groups,
    "multi_crop": _multi_crop_groups,
}


def _unit_range(image: jax.Array) -> jax.Array:
    return image.astype(jnp.float32) / 255.0


def preprocess(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """What evaluation does to the images that the host has cut to size.

    Args:
        config: the group `data`.

    Returns:
        A function from uint8 images (B, S, S, C) to normalised ones.
    """
    return lambda images: augment.normalize(_unit_range(images), tuple(config.mean), tuple(config.std))


def make_views(config: ConfigDict, groups: tuple[ViewGroup, ...]) -> Views:
    """The function that draws the normalised views of a batch.

    Args:
        config: the group `data`.
        groups: what `view_groups` returned.

    Returns:
        See `step.Views`; `batch` holds example numbers (B,) where the data set is on the device, and else a
        `CanvasBatch` or a `CroppedBatch`.
    """

    def draw(key: jax.Array, dataset: Dataset | None, batch: Any) -> tuple[jax.Array, ...]:
        if dataset is not None:
            batch = CanvasBatch(batch, dataset.images[batch], dataset.sizes[batch])
        parameters = views.draw_views(key, batch.sizes, batch.example_ids, groups)
        rendered = render(batch, parameters, groups)
        return tuple(augment.normalize(group, tuple(config.mean), tuple(config.std)) for group in rendered)

    return draw


def render(
    batch: CanvasBatch | CroppedBatch, parameters: tuple[Any, ...], groups: tuple[ViewGroup, ...]
) -> tuple[jax.Array, ...]:
    """Renders the views of all groups.

    Args:
        batch: the images.
        parameters: what `views.draw_views` drew.
        groups: the groups.

    Returns:
        Views in [0, 1], one array (V, B, H', W', C) for each group.
    """
    if isinstance(batch, CroppedBatch):
        images = [jnp.moveaxis(crops, 1, 0) for crops in batch.crops]
    else:
        images = [batch.images] * len(groups)
    # One core works on one image at a time; an accelerator, and devices that share a batch, on all at once.
    one_by_one = environment.on_one_cpu()
    return tuple(
        views.render_views(group_images, group_parameters, group.render, one_by_one=one_by_one)
        for group_images, group_parameters, group in zip(images, parameters, groups, strict=True)
    )
