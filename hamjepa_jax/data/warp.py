"""Views of digits, which have no colours and must not be mirrored or cropped: small affine warps and noise."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class WarpedView(NamedTuple):
    """The parameters of a view of a digit.

    Attributes:
        angle: rotation in degrees.
        scale: enlargement along rows and columns, (2,).
        shift: shift along rows and columns, in image sizes, (2,).
        contrast: factor on the values.
        noise_key: key of the noise.
    """

    angle: jax.Array
    scale: jax.Array
    shift: jax.Array
    contrast: jax.Array
    noise_key: jax.Array


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
    source = jnp.matmul(grid, matrix.T, precision="highest") + translation

    def hat_weights(coordinates: jax.Array, length: int) -> jax.Array:
        pixels = 0.5 * ((coordinates + 1.0) * length - 1.0)
        return jax.nn.relu(1.0 - jnp.abs(pixels[:, None] - jnp.arange(length, dtype=image.dtype)))

    rows = jnp.einsum("or,rwc->owc", hat_weights(source[:, 0], height), image, precision="highest")
    pixels = jnp.einsum("ow,owc->oc", hat_weights(source[:, 1], width), rows, precision="highest")
    return pixels.reshape(size, size, -1)


def draw_warp(
    key: chex.PRNGKey, *, max_rotation: float, max_log_scale: float, max_shift: float, max_contrast: float
) -> WarpedView:
    """Draws a view of a digit: a small rotation, scale and shift, a contrast change, and noise; never a flip.

    Args:
        key: a typed PRNG key.
        max_rotation: the angle is uniform in ±max_rotation, in degrees.
        max_log_scale: the logarithm of the scale is uniform in ±max_log_scale, for each axis on its own.
        max_shift: the shift is uniform in ±max_shift, in image sizes, for each axis on its own.
        max_contrast: the contrast factor is uniform in 1 ± max_contrast.

    Returns:
        The parameters.
    """
    angle_key, scale_key, shift_key, contrast_key, noise_key = jax.random.split(key, 5)

    def symmetric(key: chex.PRNGKey, bound: float, shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    return WarpedView(
        angle=symmetric(angle_key, max_rotation),
        scale=jnp.exp(symmetric(scale_key, max_log_scale, (2,))),
        shift=symmetric(shift_key, max_shift, (2,)),
        contrast=1.0 + symmetric(contrast_key, max_contrast),
        noise_key=noise_key,
    )


def render_warp(image: chex.Array, parameters: WarpedView, *, size: int, noise_std: float) -> jax.Array:
    """Renders a view of a digit.

    Args:
        image: float image (H, W, C) in [0, 1].
        parameters: what `draw_warp` drew.
        size: height and width of the view.
        noise_std: standard deviation of the Gaussian noise of each pixel.

    Returns:
        The view (size, size, C), in [0, 1].
    """
    angle = jnp.deg2rad(parameters.angle)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.array([[cos, sin], [-sin, cos]])
    # The grid spans two units.
    view = affine_warp(image, rotation / parameters.scale, 2.0 * parameters.shift, size=size)
    noise = noise_std * jax.random.normal(parameters.noise_key, view.shape, image.dtype)
    return jnp.clip(parameters.contrast * view + noise, 0.0, 1.0)
