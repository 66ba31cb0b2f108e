"""Convolutions of 3×3 kernels through matrix products, with fewer multiplications than there are taps.

XLA's own convolutions are slow on a CPU, the gradient with respect to the kernel most of all, and its matrix products
are not. Minimal filtering makes the former of the latter: of a tile x of a row, the outputs of a filter g are

    y = A ((G g) ⊙ (B x)),

with as many products ⊙ as the tile has inputs. In two dimensions every product of a row algorithm with a column
algorithm is, over all images, tiles and channels, one matrix product. Two outputs of a filter of three taps take four
products instead of six, and four take six instead of twelve, so that a convolution takes 16/36 or 36/144 of its
multiplications. Both gradients are of the same kind, with the transposes of A and B in the place of B and A.

Nothing is approximated: it is the same sum in another order. The smaller tiles round no more than adding tap by tap,
and the forward pass takes them, because its rounding decides on which side of a rectifier a value falls. The larger
ones round three times as much, and compute the gradients, in which nothing jumps.

Feature maps are (H, W, N, C), so that rows and columns are cut into tiles without touching what is contiguous.

References: Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", 2016; Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep
Neural Networks", 2020 (where to evaluate the polynomials).
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import cache, partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

TAPS = 3
# Outputs of a tile along an axis, in the forward pass and in the gradients.
FORWARD_TILE, GRADIENT_TILE = 2, 4
# Where polynomials are multiplied by their values, besides at infinity, by the number of points. Of the small fractions
# that were tried these round the least, half as much as small integers.
POINTS = {
    2: (Fraction(0), Fraction(1)),
    3: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(2)),
    5: (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)),
}


class Algorithm(NamedTuple):
    """The minimal filtering of a row by three taps with a stride: y = A ((G g) ⊙ (B x)).

    Attributes:
        outputs: A (outputs, P), float64.
        kernel: G (P, 3), float64.
        inputs: B (P, inputs), float64; the first input is that of the first tap of the first output.
    """

    outputs: np.ndarray
    kernel: np.ndarray
    inputs: np.ndarray


@cache
def algorithm(stride: int, tile: int) -> Algorithm:
    """The filtering of a row by three taps, y[o] = Σₖ g[k] · x[stride·o + k].

    With a stride of 2 the first and the last tap meet the even inputs, as a filter of two taps without a stride, and
    the tap between them meets the odd ones.

    Args:
        stride: 1 or 2.
        tile: outputs of a tile, 2 or 4.

    Returns:
        The matrices, with P = tile + 2 products, or 2 · tile + 1 with a stride of 2.

    Raises:
        ValueError: for another stride.
    """
    if stride == 1:
        return _toom_cook(TAPS, tile)
    if stride != 2:
        raise ValueError(f"stride: must be 1 or 2, got {stride}")
    even = _toom_cook(2, tile)
    num_even = len(even.inputs)
    outputs = np.hstack([even.outputs, np.eye(tile)])
    kernel, inputs = np.zeros((num_even + tile, TAPS)), np.zeros((num_even + tile, 2 * tile + 1))
    kernel[:num_even, ::2], kernel[num_even:, 1] = even.kernel, 1.0
    inputs[:num_even, ::2], inputs[num_even:, 1::2] = even.inputs, np.eye(tile)
    return Algorithm(outputs, kernel, inputs)


def _toom_cook(taps: int, tile: int) -> Algorithm:
    """Multiplies polynomials by their values at points and at infinity, and transposes that into a filter."""
    points = POINTS[tile + taps - 2]
    of_others = [_product_of_roots([root for root in points if root != point]) for point in points]
    inputs = np.zeros((len(points) + 1,) * 2)
    for row, polynomial in zip(inputs, [*of_others, _product_of_roots(points)], strict=True):
        row[: len(polynomial)] = [float(coefficient) for coefficient in polynomial]
    kernel = np.zeros((len(points) + 1, taps))
    outputs = np.zeros((tile, len(points) + 1))
    for number, (point, polynomial) in enumerate(zip(points, of_others, strict=True)):
        scale = sum(coefficient * point**power for power, coefficient in enumerate(polynomial))
        kernel[number] = [float(point**power / scale) for power in range(taps)]
        outputs[:, number] = [float(point**power) for power in range(tile)]
    kernel[-1, -1] = outputs[-1, -1] = 1.0
    return Algorithm(outputs, kernel, inputs)


def _product_of_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients of Π (x − root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [high - root * low for high, low in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


class Tiling(NamedTuple):
    """How a transform cuts the rows, and the columns, of a map into tiles.

    Attributes:
        matrix: what is done to a tile, (P, K).
        step: pixels from one tile to the next.
        offset: the pixel at which the first tile begins; those before 0 and after the last are zero.
        rows: rows of the map.
        columns: columns of the map.
    """

    matrix: np.ndarray
    step: int
    offset: int
    rows: int
    columns: int

    def tiles(self, length: int) -> int:
        """How many tiles it takes so that their steps cover an axis."""
        return -(-length // self.step)

    def rows_to_products(self) -> np.ndarray:
        """The transform of a whole column of the map, (P · tiles, rows)."""
        products, size = self.matrix.shape
        num_tiles = self.tiles(self.rows)
        dense = np.zeros((products, num_tiles, self.rows))
        for tile in range(num_tiles):
            for k in range(size):
                row = self.step * tile + k + self.offset
                if 0 <= row < self.rows:
                    dense[:, tile, row] = self.matrix[:, k]
        return dense.reshape(products * num_tiles, self.rows)


def transform_tiles(x_HxWxNxC: jax.Array, tiling: Tiling) -> list[jax.Array]:
    """Applies a matrix to the rows and to the columns of every tile of a map, M x Mᵀ.

    Args:
        x_HxWxNxC: feature maps.
        tiling: the matrix M and the tiles.

    Returns:
        For each of the P products of the columns, those with all P of the rows: (P, tiles · N, C).
    """
    _, _, batch, channels = x_HxWxNxC.shape
    products, size = tiling.matrix.shape
    rows, columns = tiling.tiles(tiling.rows), tiling.tiles(tiling.columns)
    # One matrix product does all tiles of a column, and the zeros beyond the border, faster than sums of their rows.
    dense = jnp.asarray(tiling.rows_to_products(), x_HxWxNxC.dtype)
    y = jnp.reshape(dense @ x_HxWxNxC.reshape(tiling.rows, -1), (products * rows, tiling.columns, batch, channels))
    reach = tiling.step * (columns - 1)
    after = reach + size + tiling.offset - tiling.columns
    y = jnp.pad(y, ((0, 0), (-tiling.offset, after), (0, 0), (0, 0)))
    taps = [jax.lax.slice_in_dim(y, k, k + reach + 1, tiling.step, axis=1) for k in range(size)]
    return [_combination(row, taps).reshape(products, -1, channels) for row in tiling.matrix]


def transform_tiles_adjoint(parts: Sequence[jax.Array], tiling: Tiling) -> jax.Array:
    """The transpose of `transform_tiles`: the maps Σ Mᵀ p M, where tiles that overlap are added.

    Args:
        parts: for each of the P products of the columns, those with all P of the rows: (P, tiles · N, C).
        tiling: the matrix M and the tiles.

    Returns:
        Feature maps (H, W, N, C).
    """
    products, _ = tiling.matrix.shape
    rows, columns, channels = tiling.tiles(tiling.rows), tiling.tiles(tiling.columns), parts[0].shape[-1]
    dense = jnp.asarray(tiling.rows_to_products().T, parts[0].dtype)
    by_tile = [
        jnp.reshape(dense @ part.reshape(products * rows, -1), (tiling.rows, columns, -1, channels)) for part in parts
    ]
    pixels = [_pixel(by_tile, tiling, pixel) for pixel in range(tiling.step)]
    y = jnp.stack(pixels, axis=2).reshape(tiling.rows, columns * tiling.step, -1, channels)
    return y[:, : tiling.columns]


def _pixel(by_tile: Sequence[jax.Array], tiling: Tiling, pixel: int) -> jax.Array:
    """The sum of what a pixel of each step gets from its own tile and from the tiles before and after."""
    total = None
    for k in range(tiling.matrix.shape[1]):
        distance, elsewhere = divmod(pixel - k - tiling.offset, tiling.step)
        if elsewhere == 0:
            term = _shift(_combination(tiling.matrix[:, k], by_tile), distance)
            total = term if total is None else total + term
    return total


def _shift(x_HxSxNxC: jax.Array, by: int) -> jax.Array:
    """Tile s + by in the place of tile s, and zeros where there is none."""
    if by == 0:
        return x_HxSxNxC
    kept = x_HxSxNxC[:, by:] if by > 0 else x_HxSxNxC[:, :by]
    return jnp.pad(kept, ((0, 0), (max(-by, 0), max(by, 0)), (0, 0), (0, 0)))


def _combination(coefficients: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
    """Σ coefficient · array."""
    total = None
    for coefficient, array in zip(coefficients, arrays, strict=True):
        if coefficient != 0.0:
            term = array if coefficient == 1.0 else float(coefficient) * array
            total = term if total is None else total + term
    return total


def _tilings(shape: tuple[int, ...], stride: int, tile: int) -> tuple[Tiling, Tiling]:
    """The tiles of the input maps, and those of the outputs."""
    of_row = algorithm(stride, tile)
    height, width = shape[:2]
    # The first tap of the first output is one pixel beyond the border.
    inputs = Tiling(of_row.inputs, stride * tile, -1, height, width)
    outputs = Tiling(of_row.outputs.T, tile, 0, -(-height // stride), -(-width // stride))
    return inputs, outputs


def _transform_kernel(kernel_3x3xCxO: jax.Array, stride: int, tile: int) -> jax.Array:
    """G g Gᵀ for every pair of channels, (P, P, C, O)."""
    matrix = algorithm(stride, tile).kernel
    both_axes = jnp.asarray(np.kron(matrix, matrix), kernel_3x3xCxO.dtype)
    return jnp.reshape(both_axes @ kernel_3x3xCxO.reshape(TAPS**2, -1), (len(matrix),) * 2 + kernel_3x3xCxO.shape[2:])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_3x3(x_HxWxNxC: jax.Array, kernel_3x3xCxO: jax.Array, stride: int) -> jax.Array:
    """The convolution (as networks call the correlation) of maps with a 3×3 kernel, a border of one zero around them.

    Args:
        x_HxWxNxC: feature maps.
        kernel_3x3xCxO: the kernel, of the type of the maps.
        stride: 1 or 2.

    Returns:
        Feature maps (⌈H / stride⌉, ⌈W / stride⌉, N, O).

    References:
        Lavin and Gray, 2016, section 4; the gradient with respect to the kernel, section 3.
    """
    chex.assert_rank([x_HxWxNxC, kernel_3x3xCxO], 4)
    chex.assert_axis_dimension(kernel_3x3xCxO, 2, x_HxWxNxC.shape[3])
    inputs, outputs = _tilings(x_HxWxNxC.shape, stride, FORWARD_TILE)
    kernel = _transform_kernel(kernel_3x3xCxO, stride, FORWARD_TILE)
    tiles = transform_tiles(x_HxWxNxC, inputs)
    parts = [jnp.einsum("imc,ico->imo", tile, kernel[:, j]) for j, tile in enumerate(tiles)]
    return transform_tiles_adjoint(parts, outputs)


def _forward(x_HxWxNxC: jax.Array, kernel_3x3xCxO: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return convolve_3x3(x_HxWxNxC, kernel_3x3xCxO, stride), (x_HxWxNxC, kernel_3x3xCxO)


def _backward(stride: int, residuals: tuple[jax.Array, ...], dy_HxWxNxO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_HxWxNxC, kernel_3x3xCxO = residuals
    inputs, outputs = _tilings(x_HxWxNxC.shape, stride, GRADIENT_TILE)
    kernel, pull_back = jax.vjp(partial(_transform_kernel, stride=stride, tile=GRADIENT_TILE), kernel_3x3xCxO)
    tiles, dy_tiles = transform_tiles(x_HxWxNxC, inputs), transform_tiles(dy_HxWxNxO, outputs)
    dx_parts = [jnp.einsum("imo,ico->imc", dy_tile, kernel[:, j]) for j, dy_tile in enumerate(dy_tiles)]
    d_kernel = jnp.stack([jnp.einsum("imc,imo->ico", *pair) for pair in zip(tiles, dy_tiles, strict=True)], axis=1)
    return transform_tiles_adjoint(dx_parts, inputs), *pull_back(d_kernel)


convolve_3x3.defvjp(_forward, _backward)
