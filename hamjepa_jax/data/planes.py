"""The arithmetic of augmentation, on planes: arrays (C, W, H) in which every channel lies in one piece.

A processor then works on many pixels at once, which it cannot where three channels alternate. `augment` explains the
operations and has them for images (H, W, C).
"""

import math

import chex
import jax
import jax.numpy as jnp

# Weights of red, green and blue in the luminance, as torchvision rounds ITU-R 601.
LUMINANCE = (0.2989, 0.587, 0.114)
# Banded matrices are multiplied in blocks of at most so many outputs, which leaves out most of their zeros.
BLOCK = 64


def from_image(image: chex.Array) -> jax.Array:
    """Takes an image (H, W, C) apart to planes (C, W, H)."""
    return jnp.transpose(image, (2, 1, 0))


def to_image(x: chex.Array) -> jax.Array:
    """Puts planes (C, W, H) together to an image (H, W, C)."""
    return jnp.transpose(x, (2, 1, 0))


def blocks(length: int) -> tuple[int, int]:
    """The number of blocks in which banded matrices of so many outputs are multiplied, and the outputs of each."""
    count = -(-length // BLOCK)
    return count, -(-length // count)


def crop_window(full_width: int, size: int) -> int:
    """The number of columns that one block of a crop can depend on, for an image of a width and a view of a size."""
    scale = full_width / size
    return min(full_width, math.ceil((blocks(size)[1] - 1) * scale + 2 * max(1.0, scale)) + 1)


def luminance(x: chex.Array) -> jax.Array:
    """The luminance of planes (3, W, H), (W, H)."""
    red, green, blue = (weight * plane for weight, plane in zip(LUMINANCE, x, strict=True))
    return red + green + blue


def _blend(x: chex.Array, other: chex.Numeric, factor: chex.Numeric) -> jax.Array:
    return jnp.clip(factor * x + (1.0 - factor) * other, 0.0, 1.0)


def brightness(x: chex.Array, factor: chex.Numeric) -> jax.Array:
    """`augment.adjust_brightness`, of planes (3, W, H)."""
    return _blend(x, 0.0, factor)


def contrast(x: chex.Array, factor: chex.Numeric) -> jax.Array:
    """`augment.adjust_contrast`, of planes (3, W, H)."""
    return _blend(x, jnp.mean(luminance(x)), factor)


def saturation(x: chex.Array, factor: chex.Numeric) -> jax.Array:
    """`augment.adjust_saturation`, of planes (3, W, H)."""
    return _blend(x, luminance(x), factor)


def hue(x: chex.Array, factor: chex.Numeric) -> jax.Array:
    """`augment.adjust_hue`, of planes (3, W, H)."""
    red, green, blue = x
    maximum = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = maximum - jnp.minimum(jnp.minimum(red, green), blue)
    inverse = 1.0 / jnp.where(chroma == 0, 1.0, chroma)
    sixths = jnp.where(
        maximum == red,
        (green - blue) * inverse,
        jnp.where(maximum == green, 2.0 + (blue - red) * inverse, 4.0 + (red - green) * inverse),
    )
    k = sixths + 6.0 * factor + jnp.asarray([5.0, 3.0, 1.0], x.dtype)[:, None, None]
    k -= 6.0 * jnp.floor(k / 6.0)
    return maximum - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)


def grayscale(x: chex.Array) -> jax.Array:
    """`augment.to_grayscale`, of planes (3, W, H)."""
    return jnp.broadcast_to(luminance(x), x.shape)


def jitter(x: chex.Array, operations: chex.Array, factors: chex.Array) -> jax.Array:
    """`augment.jitter_color`, of planes (3, W, H)."""

    # In a loop because XLA would otherwise fuse all operations, and compute the first once for each pixel of the last.
    def apply(x: jax.Array, operation: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, factor = operation
        return jax.lax.switch(index, (brightness, contrast, saturation, hue), x, factor), None

    return jax.lax.scan(apply, x, (operations, factors))[0]


def gaussian_blur(x: chex.Array, sigma: chex.Numeric, kernel_size: int) -> jax.Array:
    """`augment.gaussian_blur`, of planes (C, W, H)."""
    radius = kernel_size // 2
    if kernel_size % 2 == 0 or radius >= min(x.shape[1:]):
        limit = 2 * min(x.shape[1:]) - 1
        raise ValueError(f"kernel_size: must be odd and at most {limit} for this image, got {kernel_size}")

    def along(x: jax.Array, axis: int) -> jax.Array:
        length = x.shape[axis]
        num_blocks, block = blocks(length)
        window = block + 2 * radius
        x = jnp.pad(x, [(radius, radius) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        x = jnp.pad(x, [(0, num_blocks * block - length) if a == axis else (0, 0) for a in range(3)])
        offsets = jnp.arange(window, dtype=x.dtype) - jnp.arange(block, dtype=x.dtype)[:, None] - radius
        kernel = jnp.where(jnp.abs(offsets) <= radius, jnp.exp(-0.5 * jnp.square(offsets / sigma)), 0.0)
        kernel /= jnp.sum(kernel[0])
        windows = [jax.lax.slice_in_dim(x, i * block, i * block + window, axis=axis) for i in range(num_blocks)]
        product = "ij,cnjh->cnih" if axis == 1 else "ij,cwnj->cwni"
        y = jnp.einsum(product, kernel, jnp.stack(windows, axis), precision="highest")
        y = y.reshape(*x.shape[:axis], num_blocks * block, *x.shape[axis + 1 :])
        return jax.lax.slice_in_dim(y, 0, length, axis=axis)

    return along(along(x, 1), 2)


def resized_crop(
    image: chex.Array, top: chex.Numeric, left: chex.Numeric, height: chex.Numeric, width: chex.Numeric, size: int
) -> jax.Array:
    """`augment.resized_crop`, from an image (H, W, C) to planes (C, size, size)."""
    full_height, full_width, channels = image.shape
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    top, left, height, width = (jnp.asarray(value, jnp.int32) for value in (top, left, height, width))
    # Rows lie in one piece, so that gathering the few that matter is faster than multiplying with all of them.
    taps = math.ceil(2 * max(1.0, full_height / size))
    outputs = jnp.arange(size, dtype=jnp.int32)
    rows = _first_pixel(outputs, height, size)[:, None] + jnp.arange(taps, dtype=jnp.int32)
    weights = _hat_weights(rows, outputs, height, size, dtype)
    indices = jnp.clip(top + rows, 0, full_height - 1)
    flat = image.reshape(full_height, full_width * channels)
    x = sum(weights[:, tap, None] * flat[indices[:, tap]].astype(dtype) for tap in range(taps))
    x = x.reshape(size, full_width, channels)

    # A block of columns depends on the few around it, of which at most `window` can matter.
    _, block = blocks(size)
    window = crop_window(full_width, size)
    planes = []
    for start in range(0, size, block):
        first = jnp.clip(left + _first_pixel(start, width, size), 0, full_width - window)
        columns = first - left + jnp.arange(window, dtype=jnp.int32)
        weights = _hat_weights(columns, outputs[start : start + block], width, size, dtype)
        part = jax.lax.dynamic_slice_in_dim(x, first, window, axis=1)
        planes.append(jnp.einsum("jw,hwc->cjh", weights, part, precision="highest"))
    return jnp.concatenate(planes, axis=1)


def _first_pixel(output: chex.Numeric, length: chex.Numeric, size: int) -> jax.Array:
    """The first pixel of a box of some length that has an influence on an output pixel; before the box, negative.

    In whole numbers, because XLA may compute a value several times, and with other roundings each time.
    """
    return ((2 * output + 1) * length - 2 * jnp.maximum(length, size) + size) // (2 * size)


def _hat_weights(pixels: jax.Array, outputs: jax.Array, length: chex.Numeric, size: int, dtype: jnp.dtype) -> jax.Array:
    """Weights of pixels ([n_outputs,] n), counted from the start of the box, for output pixels (n_outputs,)."""
    scale = length.astype(dtype) / size
    centers = (outputs.astype(dtype) + 0.5) * scale
    distances = jnp.abs(pixels.astype(dtype) + 0.5 - centers[:, None]) / jnp.maximum(scale, 1.0)
    inside = (pixels >= 0) & (pixels < length)
    weights = jnp.where(inside, jnp.maximum(0.0, 1.0 - distances), 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)
