"""Views: parameters are drawn from a key, then rendered; each is a pure function of one example, mapped over a batch.

The key of a view is folded from the key of the step, the view's number and the example's index: the same example gets
the same view in the same step, wherever it is placed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from hamjepa_jax.data import augment, planes

CROP_TRIES = 10


class CropBox(NamedTuple):
    """The part of an image that a view shows, in whole pixels.

    Attributes:
        top: first row.
        left: first column.
        height: number of rows.
        width: number of columns.
    """

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


class Appearance(NamedTuple):
    """What is done to a view after cropping, in this order.

    Attributes:
        flip: whether it is mirrored.
        operations: order of the colour operations, indices into `augment.COLOR_OPERATIONS`, (4,).
        factors: their factors, neutral where there is no jitter, (4,).
        grayscale: whether it loses its colours.
        blur_sigma: standard deviation of the blur in pixels, or 0 for none.
        solarize: whether it is solarised.
    """

    flip: jax.Array
    operations: jax.Array
    factors: jax.Array
    grayscale: jax.Array
    blur_sigma: jax.Array
    solarize: jax.Array


class CroppedView(NamedTuple):
    """The parameters of a view.

    Attributes:
        box: the part of the image.
        appearance: what is done to it.
    """

    box: CropBox
    appearance: Appearance


class FilmedView(NamedTuple):
    """The parameters of a view of a film, which is one of its images.

    Attributes:
        number: number of the image.
    """

    number: jax.Array


class ViewGroup(NamedTuple):
    """Views of one kind and resolution.

    Attributes:
        num_views: how many of an example.
        draw: `draw(key, image_size, view_number) -> parameters`, image_size int32 (2,), rows and columns of the image;
            views are numbered within the group.
        render: `render(image, parameters) -> view`, from a uint8 image (H, W, C) to a float one (H', W', C) in [0, 1].
    """

    num_views: int
    draw: Callable[[chex.PRNGKey, jax.Array, jax.Array], Any]
    render: Callable[[jax.Array, Any], jax.Array]


def draw_views(
    key: chex.PRNGKey, image_sizes_Bx2: chex.Array, example_ids_B: chex.Array, groups: tuple[ViewGroup, ...]
) -> tuple[Any, ...]:
    """Draws the parameters of all views of a batch.

    Args:
        key: the key of the step.
        image_sizes_Bx2: rows and columns of the images.
        example_ids_B: the examples' indices in the data set.
        groups: the kinds of views; their views are counted through.

    Returns:
        The parameters of each group, arrays (V, B, ...).
    """
    first, parameters = 0, []
    for group in groups:

        def draw(
            view_number: jax.Array,
            image_size: jax.Array,
            example_id: jax.Array,
            group: ViewGroup = group,
            first: int = first,
        ) -> Any:
            view_key = jax.random.fold_in(jax.random.fold_in(key, first + view_number), example_id)
            return group.draw(view_key, image_size, view_number)

        over_examples = jax.vmap(draw, in_axes=(None, 0, 0))
        view_numbers = jnp.arange(group.num_views, dtype=jnp.int32)
        parameters.append(
            jax.vmap(over_examples, in_axes=(0, None, None))(view_numbers, image_sizes_Bx2, example_ids_B)
        )
        first += group.num_views
    return tuple(parameters)


def render_views(
    images: chex.Array,
    parameters: Any,
    render: Callable[[jax.Array, Any], jax.Array],
    *,
    one_by_one: bool,
) -> jax.Array:
    """Renders the views of one group.

    Args:
        images: uint8 images (B, H, W, C), of which all views are made, or (V, B, H, W, C), one for each view.
        parameters: what was drawn for them, arrays (V, B, ...).
        render: renders one view, see `ViewGroup`.
        one_by_one: whether in a loop, which stays in the cache of a CPU and leaves out what a view does not need, or
            all at once, as an accelerator wants it.

    Returns:
        Views (V, B, H', W', C).
    """
    shared = images.ndim == 4
    if not one_by_one:
        over_examples = jax.vmap(render)
        return jax.vmap(over_examples, in_axes=(None if shared else 0, 0))(images, parameters)

    def over_examples(view_images: jax.Array, view_parameters: Any) -> jax.Array:
        return jax.lax.map(lambda example: render(*example), (view_images, view_parameters))

    if shared:
        return jax.lax.map(lambda view_parameters: over_examples(images, view_parameters), parameters)
    return jax.lax.map(lambda view: over_examples(*view), (images, parameters))


def render_film(film: chex.Array, parameters: FilmedView, *, size: int) -> jax.Array:
    """Cuts one image out of a film.

    Args:
        film: images side by side, (H, W, C).
        parameters: which of them.
        size: height and width of an image.

    Returns:
        The image (size, size, C), in the dtype of the film.
    """
    start = (0, parameters.number * size, 0)
    return jax.lax.dynamic_slice(film, start, (size, size, film.shape[-1]))


def draw_crop(
    key: chex.PRNGKey,
    image_size: chex.Array,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> CropBox:
    """Draws the box of a random resized crop.

    The area is uniform in `scale`, the logarithm of the aspect ratio width/height uniform between those of `ratio`. Of
    ten tries the first that fits is taken, anywhere in the image; if none fits, the largest central box of an allowed
    ratio.

    Args:
        key: a typed PRNG key.
        image_size: rows and columns of the image, int (2,).
        scale: smallest and largest area, as a fraction of that of the image.
        ratio: smallest and largest aspect ratio.

    Returns:
        The box, int32.

    References:
        Szegedy et al., "Going deeper with convolutions", CVPR 2015.
    """
    full_height, full_width = image_size.astype(jnp.float32)
    shape_key, place_key = jax.random.split(key)
    draws = jax.random.uniform(shape_key, (2, CROP_TRIES), jnp.float32)
    areas = full_height * full_width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = jnp.log(jnp.asarray(ratio, jnp.float32))
    ratios = jnp.exp(low + (high - low) * draws[1])
    widths, heights = jnp.round(jnp.sqrt(areas * ratios)), jnp.round(jnp.sqrt(areas / ratios))
    fits = (widths >= 1) & (widths <= full_width) & (heights >= 1) & (heights <= full_height)
    first = jnp.argmax(fits)

    central_width = jnp.clip(jnp.round(full_height * ratio[1]), 1, full_width)
    central_height = jnp.clip(jnp.round(full_width / ratio[0]), 1, full_height)
    height = jnp.where(fits[first], heights[first], central_height)
    width = jnp.where(fits[first], widths[first], central_width)
    room = jnp.stack([full_height - height, full_width - width])
    place = jnp.minimum(jnp.floor(jax.random.uniform(place_key, (2,), jnp.float32) * (room + 1)), room)
    place = jnp.where(fits[first], place, jnp.floor(room / 2))
    return CropBox(*(value.astype(jnp.int32) for value in (place[0], place[1], height, width)))


def draw_appearance(
    key: chex.PRNGKey,
    *,
    flip: float,
    jitter: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    grayscale: float,
    blur: float,
    blur_sigma: tuple[float, float],
    solarize: float,
) -> Appearance:
    """Draws what is done to a view after cropping.

    Args:
        key: a typed PRNG key.
        flip: probability of mirroring.
        jitter: probability of the colour operations, which come in random order.
        brightness: the factor is uniform in 1 ± brightness, from 0 on.
        contrast: the factor is uniform in 1 ± contrast, from 0 on.
        saturation: the factor is uniform in 1 ± saturation, from 0 on.
        hue: the turn is uniform in ±hue of the colour circle.
        grayscale: probability of losing the colours.
        blur: probability of the blur.
        blur_sigma: its smallest and largest standard deviation in pixels, uniform between.
        solarize: probability of solarising.

    Returns:
        The parameters.
    """
    coin_key, factor_key, order_key, sigma_key = jax.random.split(key, 4)
    probabilities = jnp.asarray([flip, jitter, grayscale, blur, solarize], jnp.float32)
    flipped, jittered, gray, blurred, solarized = jax.random.uniform(coin_key, (5,), jnp.float32) < probabilities
    strengths = jnp.asarray([brightness, contrast, saturation, hue], jnp.float32)
    lowest = jnp.maximum(neutral_factors() - strengths, jnp.asarray([0.0, 0.0, 0.0, -0.5], jnp.float32))
    highest = neutral_factors() + strengths
    drawn = lowest + (highest - lowest) * jax.random.uniform(factor_key, (4,), jnp.float32)
    operations = jnp.argsort(jax.random.uniform(order_key, (4,), jnp.float32)).astype(jnp.int32)
    factors = jnp.where(jittered, drawn, neutral_factors())
    sigma = jax.random.uniform(sigma_key, (), jnp.float32, *blur_sigma)
    return Appearance(
        flip=flipped,
        operations=operations,
        factors=factors[operations],
        grayscale=gray,
        blur_sigma=jnp.where(blurred, sigma, 0.0),
        solarize=solarized,
    )


def render_crop(
    image: chex.Array, parameters: CroppedView, *, size: int, blur_kernel_size: int, solarize_threshold: float
) -> jax.Array:
    """Cuts a view out of an image and changes its appearance.

    Args:
        image: uint8 image (H, W, 3).
        parameters: what was drawn.
        size: height and width of the view.
        blur_kernel_size: length of the blur's kernel, odd.
        solarize_threshold: value from which on solarising inverts.

    Returns:
        The view (size, size, 3) in [0, 1].
    """
    x = planes.resized_crop(image, *parameters.box, size) / 255.0
    return planes.to_image(_apply(x, parameters.appearance, blur_kernel_size, solarize_threshold))


def apply_appearance(
    image: chex.Array, appearance: Appearance, *, blur_kernel_size: int, solarize_threshold: float
) -> jax.Array:
    """Mirrors, jitters, greys, blurs and solarises a view that is already cut out.

    Args:
        image: float image (H, W, 3) in [0, 1].
        appearance: the parameters.
        blur_kernel_size: length of the blur's kernel, odd.
        solarize_threshold: value from which on solarising inverts.

    Returns:
        The view (H, W, 3) in [0, 1].
    """
    return planes.to_image(_apply(planes.from_image(image), appearance, blur_kernel_size, solarize_threshold))


def _apply(x: jax.Array, appearance: Appearance, blur_kernel_size: int, solarize_threshold: float) -> jax.Array:
    """Changes the appearance of planes (3, W, H)."""

    def jitter(x: jax.Array) -> jax.Array:
        return planes.jitter(x, appearance.operations, appearance.factors)

    def blur(x: jax.Array) -> jax.Array:
        # A width of 0, for which this branch is not taken, must not divide by zero where both branches are computed.
        sigma = jnp.where(appearance.blur_sigma > 0, appearance.blur_sigma, 1.0)
        return planes.gaussian_blur(x, sigma, blur_kernel_size)

    jittered = jnp.any(appearance.factors != neutral_factors()[appearance.operations])
    x = jnp.where(appearance.flip, x[:, ::-1], x)
    x = jax.lax.cond(jittered, jitter, lambda x: x, x)
    x = jax.lax.cond(appearance.grayscale, planes.grayscale, lambda x: x, x)
    x = jax.lax.cond(appearance.blur_sigma > 0, blur, lambda x: x, x)
    return augment.solarize(x, jnp.where(appearance.solarize, jnp.asarray(solarize_threshold, x.dtype), jnp.inf))


def neutral_factors() -> jax.Array:
    """The factors of the colour operations that change nothing, in the order of `augment.COLOR_OPERATIONS`."""
    return jnp.asarray([1.0, 1.0, 1.0, 0.0], jnp.float32)
