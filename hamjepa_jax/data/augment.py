"""Augmentation on the device: pure functions of one image and of parameters that may be traced.

The operations are those of torchvision on float images; `planes` has their arithmetic.
"""

import chex
import jax
import jax.numpy as jnp

from hamjepa_jax.data import planes

# The order in which `jitter_color` numbers them.
COLOR_OPERATIONS = ("brightness", "contrast", "saturation", "hue")


def normalize(image: chex.Array, mean: chex.Numeric, std: chex.Numeric) -> jax.Array:
    """Standardises channels, (image − mean)/std.

    Args:
        image: float image (H, W, C).
        mean: mean of each channel, (C,) or a scalar.
        std: standard deviation of each channel, (C,) or a scalar.

    Returns:
        The normalised image (H, W, C).
    """
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    return (image - jnp.asarray(mean, dtype)) / jnp.asarray(std, dtype)


def adjust_brightness(image: chex.Array, factor: chex.Numeric) -> jax.Array:
    """Scales all channels, clip(factor·x, 0, 1).

    Args:
        image: float image (H, W, 3) in [0, 1].
        factor: 0 is black, 1 the image itself.

    Returns:
        The image (H, W, 3) in [0, 1].
    """
    return planes.to_image(planes.brightness(planes.from_image(image), factor))


def adjust_contrast(image: chex.Array, factor: chex.Numeric) -> jax.Array:
    """Blends with the mean luminance m of the image, clip(factor·x + (1 − factor)·m, 0, 1).

    Args:
        image: float image (H, W, 3) in [0, 1].
        factor: 0 is uniformly grey, 1 the image itself.

    Returns:
        The image (H, W, 3) in [0, 1].
    """
    return planes.to_image(planes.contrast(planes.from_image(image), factor))


def adjust_saturation(image: chex.Array, factor: chex.Numeric) -> jax.Array:
    """Blends with the luminance y of each pixel, clip(factor·x + (1 − factor)·y, 0, 1).

    Args:
        image: float image (H, W, 3) in [0, 1].
        factor: 0 is grey, 1 the image itself.

    Returns:
        The image (H, W, 3) in [0, 1].
    """
    return planes.to_image(planes.saturation(planes.from_image(image), factor))


def adjust_hue(image: chex.Array, factor: chex.Numeric) -> jax.Array:
    """Turns the hue by a fraction of the colour circle, at the saturation and value of each pixel in HSV.

    With v the maximum, c = maximum − minimum of a pixel and h its hue in sixths of the circle, channel n ∈ (5, 3, 1) is
    v − c·clip(min(k, 4 − k), 0, 1) for k = (n + h) mod 6.

    Args:
        image: float image (H, W, 3) in [0, 1].
        factor: turn, in [−½, ½] of the circle.

    Returns:
        The image (H, W, 3) in [0, 1].

    References:
        Smith, "Color Gamut Transform Pairs", SIGGRAPH 1978.
    """
    return planes.to_image(planes.hue(planes.from_image(image), factor))


def to_grayscale(image: chex.Array) -> jax.Array:
    """Replaces all channels by the luminance.

    Args:
        image: float image (H, W, 3) in [0, 1].

    Returns:
        The image (H, W, 3), its channels equal.
    """
    return planes.to_image(planes.grayscale(planes.from_image(image)))


def jitter_color(image: chex.Array, operations: chex.Array, factors: chex.Array) -> jax.Array:
    """Applies colour operations in the given order.

    Args:
        image: float image (H, W, 3) in [0, 1].
        operations: indices into `COLOR_OPERATIONS`, int (n,), the first applied first.
        factors: the factor of each operation, (n,).

    Returns:
        The image (H, W, 3) in [0, 1].
    """
    return planes.to_image(planes.jitter(planes.from_image(image), operations, factors))


def solarize(image: chex.Array, threshold: chex.Numeric) -> jax.Array:
    """Inverts the values from the threshold on, x ↦ 1 − x where x ≥ threshold.

    Args:
        image: float image (H, W, C) in [0, 1].
        threshold: a value in [0, 1], or above 1 to leave the image as it is.

    Returns:
        The image (H, W, C).
    """
    return jnp.where(image >= threshold, 1.0 - image, image)


def gaussian_blur(image: chex.Array, sigma: chex.Numeric, *, kernel_size: int) -> jax.Array:
    """Convolves with a Gaussian, cut off at the kernel's size and normalised; the image is reflected at its borders.

    Rows and columns are convolved one after the other, as products with banded matrices.

    Args:
        image: float image (H, W, C).
        sigma: standard deviation in pixels.
        kernel_size: odd length of the kernel, below twice the shorter side of the image.

    Returns:
        The image (H, W, C).

    Raises:
        ValueError: if the kernel is even or too large.
    """
    return planes.to_image(planes.gaussian_blur(planes.from_image(image), sigma, kernel_size))


def resized_crop(
    image: chex.Array,
    top: chex.Numeric,
    left: chex.Numeric,
    height: chex.Numeric,
    width: chex.Numeric,
    *,
    size: int,
) -> jax.Array:
    """Cuts out a box and resamples it bilinearly, antialiased; no pixel outside the box has an influence.

    Output pixel i has its centre at (i + ½)·scale in the box, scale = length/size, and is the mean of the pixels around
    it with the weights max(0, 1 − distance/max(scale, 1)).

    Args:
        image: image (H, W, C), float or uint8.
        top: first row of the box.
        left: first column of the box.
        height: rows of the box.
        width: columns of the box.
        size: height and width of the output.

    Returns:
        The resampled box, float (size, size, C), in the units of the image.
    """
    return planes.to_image(planes.resized_crop(image, top, left, height, width, size))
