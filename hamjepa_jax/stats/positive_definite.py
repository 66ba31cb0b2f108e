"""Symmetric positive definite matrices: what is accepted as one, and functions of its eigenvalues."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# Products such as Q diag(λ) Qᵀ are symmetric, and rotations orthogonal, to some units of rounding only.
ROUNDING_UNITS = 1000


def known(value: jax.typing.ArrayLike) -> bool:
    """Whether the value can be looked at, which under `jit`, `vmap` and `grad` it cannot."""
    return not isinstance(value, jax.core.Tracer)


def require_within(
    name: str,
    value: jax.typing.ArrayLike,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
) -> None:
    """Raises a ValueError unless a number, where it is known, is finite, in [least, most], and above a bound.

    Args:
        name: what the caller calls it.
        value: the number.
        least: the smallest that is allowed.
        most: the largest that is allowed.
        above: a bound that is not itself allowed.

    Raises:
        ValueError: if it is not.
    """
    if known(value) and not (least <= value <= most and above < value and math.isfinite(value)):
        bounds = {"at least": (least, -math.inf), "at most": (most, math.inf), "above": (above, -math.inf)}
        allowed = [f"{words} {bound}" for words, (bound, none) in bounds.items() if bound != none]
        raise ValueError(f"{name}: must be {' and '.join(['finite', *allowed])}, got {value}")


def square(name: str, matrix: jax.typing.ArrayLike, *, dim: int | None = None) -> jax.Array:
    """A finite square matrix, in float32 or wider.

    Args:
        name: what the caller calls it.
        matrix: an array (d, d).
        dim: the d that it must have; None allows any.

    Returns:
        The matrix (d, d).

    Raises:
        ValueError: if it is not square, not of that dimension, or not finite.
    """
    matrix = jnp.asarray(matrix)
    matrix = matrix.astype(jnp.promote_types(jnp.result_type(matrix, float), jnp.float32))
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"{name}: must be a square matrix (d, d), got the shape {matrix.shape}")
    if dim is not None and matrix.shape[0] != dim:
        raise ValueError(f"{name}: must have the shape {(dim, dim)}, got {matrix.shape}")
    if known(matrix) and not np.all(np.isfinite(values := np.asarray(matrix))):
        i, j = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"{name}: must be finite, and {name}[{i}, {j}] = {values[i, j]}")
    return matrix


def positive_definite(name: str, matrix: jax.typing.ArrayLike, *, dim: int | None = None) -> jax.Array:
    """A symmetric positive definite matrix, in float32 or wider; values are looked at where they are known.

    Args:
        name: what the caller calls it.
        matrix: an array (d, d).
        dim: the d that it must have; None allows any.

    Returns:
        The matrix (d, d), symmetric to the last digit.

    Raises:
        ValueError: if it is not square, not of that dimension, not finite, not symmetric, or not positive definite.
    """
    matrix = square(name, matrix, dim=dim)
    if not known(matrix):
        return 0.5 * (matrix + matrix.T)
    # In NumPy, as inside `jit` whatever jax computes is traced, also from what is known.
    values = np.asarray(matrix)
    symmetric = 0.5 * (values + values.T)
    eps = np.finfo(values.dtype).eps
    asymmetry = np.abs(values - values.T)
    if asymmetry.max() > ROUNDING_UNITS * eps * np.abs(values).max():
        i, j = np.unravel_index(np.argmax(asymmetry), asymmetry.shape)
        entries = f"{name}[{i}, {j}] = {values[i, j]:.6g} differs from {name}[{j}, {i}] = {values[j, i]:.6g}"
        raise ValueError(f"{name}: must be symmetric, and {entries}")
    eigenvalues = np.linalg.eigvalsh(symmetric)
    if eigenvalues[0] <= len(values) * eps * eigenvalues[-1]:
        extremes = f"{eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}"
        raise ValueError(
            f"{name}: must be positive definite, and its eigenvalues range from {extremes} in {values.dtype}"
        )
    return jnp.asarray(symmetric)


def orthogonal(name: str, matrix: jax.typing.ArrayLike, *, dim: int) -> jax.Array:
    """An orthogonal matrix, in float32 or wider; values are looked at where they are known.

    Args:
        name: what the caller calls it.
        matrix: an array (d, d).
        dim: its dimension d.

    Returns:
        The matrix (d, d).

    Raises:
        ValueError: if it does not have that shape, is not finite, or not orthogonal.
    """
    matrix = square(name, matrix, dim=dim)
    if known(matrix):
        values = np.asarray(matrix)
        defect = np.abs(values.T @ values - np.eye(dim)).max()
        if defect > ROUNDING_UNITS * jnp.finfo(matrix.dtype).eps:
            raise ValueError(f"{name}: must be orthogonal, and an entry of UᵀU − I is as large as {defect:.3g}")
    return matrix


def spectral_function(matrix: jax.Array, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """A function of a symmetric matrix, V f(λ) Vᵀ with its eigenvalues λ and eigenvectors V.

    Args:
        matrix: a symmetric matrix (d, d).
        function: f, from eigenvalues (d,) to (d,).

    Returns:
        A symmetric matrix (d, d).
    """
    eigenvalues, eigenvectors = jnp.linalg.eigh(matrix)
    return (eigenvectors * function(eigenvalues)) @ eigenvectors.T


def square_root(matrix: jax.Array) -> jax.Array:
    """The symmetric square root of a positive definite matrix (d, d)."""
    return spectral_function(matrix, jnp.sqrt)
