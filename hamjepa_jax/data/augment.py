"""Augmentation on the device: pure functions of a key and one image, vmapped over examples and views.

The key of a view is folded from the key of the step, the view's number and the example's index: the same example gets
the same view in the same step, wherever it is placed.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp


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


def affine_warp(image: chex.Array, matrix: chex.Array, translation: chex.Array, *, size: int) -> jax.Array:
    """Samples an image bilinearly on an affinely transformed grid; what lies outside is zero.

    Output pixel centres, in coordinates that run over [−1, 1] along both axes, are mapped to input coordinates
    by x ↦ matrix·x + translation. The sampling is two small matrix products, without gathers.

    Args:
        image: float image (H, W, C).
        matrix: (2, 2), acting on (row, column).
        translation: (2,), in half image sizes.
        size: height and width of the output.

    Returns:
        The warped image (size, size, C).
    """
    chex.assert_shape([matrix, translation], [(2, 2), (2,)])
    height, width, _ = image.shape
    centers = (2.0 * jnp.arange(size, dtype=image.dtype) + 1.0) / size - 1.0
    grid = jnp.stack(jnp.meshgrid(centers, centers, indexing="ij"), axis=-1).reshape(-1, 2)
    source = grid @ matrix.T + translation

    def hat_weights(coordinates: jax.Array, length: int) -> jax.Array:
        pixels = 0.5 * ((coordinates + 1.0) * length - 1.0)
        return jax.nn.relu(1.0 - jnp.abs(pixels[:, None] - jnp.arange(length, dtype=image.dtype)))

    rows = jnp.einsum("or,rwc->owc", hat_weights(source[:, 0], height), image)
    return jnp.einsum("ow,owc->oc", hat_weights(source[:, 1], width), rows).reshape(size, size, -1)


def digit_view(
    key: chex.PRNGKey,
    image: chex.Array,
    *,
    size: int,
    max_rotation: float,
    max_log_scale: float,
    max_shift: float,
    max_contrast: float,
    noise_std: float,
) -> jax.Array:
    """One view of a digit: a small random rotation, scale and shift, a contrast change, and noise; never a flip.

    Args:
        key: a typed PRNG key.
        image: float image (H, W, C) in [0, 1].
        size: height and width of the view.
        max_rotation: the angle is uniform in ±max_rotation, in degrees.
        max_log_scale: the logarithm of the scale is uniform in ±max_log_scale, for each axis on its own.
        max_shift: the shift is uniform in ±max_shift, in image sizes, for each axis on its own.
        max_contrast: the contrast factor is uniform in 1 ± max_contrast.
        noise_std: standard deviation of the Gaussian noise of each pixel.

    Returns:
        The view (size, size, C), in [0, 1].
    """
    angle_key, scale_key, shift_key, contrast_key, noise_key = jax.random.split(key, 5)

    def symmetric(key: chex.PRNGKey, bound: float, shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.uniform(key, shape, image.dtype, -bound, bound)

    angle = jnp.deg2rad(symmetric(angle_key, max_rotation))
    scale = jnp.exp(symmetric(scale_key, max_log_scale, (2,)))
    shift = symmetric(shift_key, 2.0 * max_shift, (2,))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.array([[cos, sin], [-sin, cos]])
    view = affine_warp(image, rotation / scale, shift, size=size)
    contrast = 1.0 + symmetric(contrast_key, max_contrast)
    noise = noise_std * jax.random.normal(noise_key, view.shape, image.dtype)
    return jnp.clip(contrast * view + noise, 0.0, 1.0)


def make_views(
    key: chex.PRNGKey,
    images_BxHxWxC: chex.Array,
    example_ids_B: chex.Array,
    *,
    view: Callable[[chex.PRNGKey, jax.Array], jax.Array],
    num_views: int,
) -> jax.Array:
    """Draws several views of every image of a batch.

    Args:
        key: the key of the step.
        images_BxHxWxC: uint8 images.
        example_ids_B: the examples' indices in the data set.
        view: draws one view of one float image in [0, 1].
        num_views: number V of views.

    Returns:
        Views (V, B, H', W', C).
    """
    images = images_BxHxWxC.astype(jnp.float32) / 255.0

    def view_of_example(view_number, image, example_id):
        return view(jax.random.fold_in(jax.random.fold_in(key, view_number), example_id), image)

    over_examples = jax.vmap(view_of_example, in_axes=(None, 0, 0))
    return jax.vmap(over_examples, in_axes=(0, None, None))(jnp.arange(num_views), images, example_ids_B)


def resize(image: chex.Array, *, size: int) -> jax.Array:
    """The view that evaluation sees: the whole image, resampled bilinearly if it is of another size.

    Args:
        image: float image (H, W, C).
        size: height and width of the output.

    Returns:
        The image (size, size, C).
    """
    return jax.image.resize(image, (size, size, image.shape[-1]), method="linear")
