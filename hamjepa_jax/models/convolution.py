"""Convolutions and what goes with them, in the layout that each backend does best.

On accelerators feature maps are (N, H, W, C), and XLA's convolutions are used. On one CPU they are (H, W, N, C),
`spatial_first`, and convolutions are matrix products.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from hamjepa_jax.models.minimal_filtering import TAPS, convolve_3x3

# With fewer input channels, as those of an image, the matrix products are too thin.
FEW_CHANNELS = 16


class Conv(nn.Module):
    """A convolution without a bias, a border of zeros around the map.

    Attributes:
        features: number of output channels.
        kernel_size: size along both axes, odd.
        stride: stride along both axes, 1 or 2.
        dtype: type of the computation; as matrix products, of inputs and outputs alone, and products are added in
            float32 or wider.
        kernel_init: initialiser of the kernel.
        spatial_first: whether maps are (H, W, N, C).
    """

    features: int
    kernel_size: int
    stride: int
    dtype: jnp.dtype
    kernel_init: Callable[..., jax.Array]
    spatial_first: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x to as many maps as there are features, ⌈H / stride⌉ × ⌈W / stride⌉."""
        channels = x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        x, kernel = x.astype(self.dtype), self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        if self.spatial_first and (self.kernel_size == 1 or self.kernel_size == TAPS and channels >= FEW_CHANNELS):
            wide = jnp.promote_types(self.dtype, jnp.float32)
            return _by_matrix_products(x.astype(wide), kernel.astype(wide), stride=self.stride).astype(self.dtype)
        layout = "HWNC" if self.spatial_first else "NHWC"
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=((self.kernel_size // 2,) * 2,) * 2,
            dimension_numbers=(layout, "HWIO", layout),
        )


def _by_matrix_products(x_HxWxNxC: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    if len(kernel) == TAPS:
        return convolve_3x3(x_HxWxNxC, kernel, stride)
    return x_HxWxNxC[::stride, ::stride] @ kernel[0, 0]


def max_pool(x: jax.Array, *, spatial_first: bool) -> jax.Array:
    """The largest value of every other 3×3 window; beyond the border there is nothing.

    Args:
        x: feature maps.
        spatial_first: whether they are (H, W, N, C).

    Returns:
        Feature maps of ⌈H / 2⌉ × ⌈W / 2⌉.
    """
    window, strides = ((3, 3, 1, 1), (2, 2, 1, 1)) if spatial_first else ((1, 3, 3, 1), (1, 2, 2, 1))
    padding = [(size // 2, size // 2) for size in window]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


def computed_once(x: jax.Array, *, spatial_first: bool) -> jax.Array:
    """Has the compiler keep an array, on a CPU, where it would compute it anew in every place that reads it.

    Args:
        x: the array.
        spatial_first: whether this is a CPU. The compiler must be told with `environment.compiler_options`, too.

    Returns:
        The array.
    """
    return jax.lax.optimization_barrier(x) if spatial_first else x
