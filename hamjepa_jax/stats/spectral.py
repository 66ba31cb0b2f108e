"""HamSIGReg's fixed geometries: maps z → H^{1/2} z, with H diagonal in the coordinates or in frequency.

A geometry is a function from z (..., D) to H^{1/2} z of the same shape, in float32 or wider. Every H is symmetric and
positive definite, so H^{1/2} is self-adjoint, ⟨H^{1/2} z, a⟩ = ⟨z, H^{1/2} a⟩. SIGReg of H^{1/2} z along directions a
is therefore SIGReg of z along H^{1/2} a: the map need only be applied to the directions, with these as rows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Geometry = Callable[[jax.Array], jax.Array]

NORMALIZATIONS = ("trace", "logdet")


def _require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: must be at least 1, got {size}")


def _widened(z: jax.Array, dim: int, layout: str) -> jax.Array:
    """The array in float32 or wider, if its last axis is as long as it has to be."""
    z = jnp.asarray(z)
    if z.shape[-1:] != (dim,):
        raise ValueError(f"z: the last axis must have {layout} = {dim} entries, got the shape {z.shape}")
    return z.astype(jnp.promote_types(z.dtype, jnp.float32))


def _eigenvalues(nu: np.ndarray, *, kappa: float, eps: float, beta: float, normalize: str) -> np.ndarray:
    """(1 − β) + β·λ with λ = κν + ε divided by its mean (`trace`) or its geometric mean (`logdet`)."""
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize: {normalize!r} is unknown; known: {', '.join(NORMALIZATIONS)}")
    if kappa < 0 or eps <= 0 or not 0 <= beta <= 1:
        raise ValueError(f"kappa ≥ 0, eps > 0 and 0 ≤ beta ≤ 1 make H positive definite, got {kappa}, {eps}, {beta}")
    eigenvalues = kappa * nu + eps
    scale = np.mean(eigenvalues) if normalize == "trace" else np.exp(np.mean(np.log(eigenvalues)))
    return (1.0 - beta) + beta * eigenvalues / scale


def squared_radius(h: int, w: int) -> np.ndarray:
    """The squared spatial frequency f_y² + f_x² of the two-dimensional Fourier transform.

    Args:
        h: number of rows.
        w: number of columns.

    Returns:
        Values (h, w) in [0, ½], frequencies in cycles per token, within ±½, in the order of `fft2`.
    """
    return np.square(np.fft.fftfreq(h))[:, None] + np.square(np.fft.fftfreq(w))


def torus_laplacian(h: int, w: int) -> np.ndarray:
    """Eigenvalues 4 sin²(πf_y) + 4 sin²(πf_x) of the graph Laplacian of an h×w grid with periodic borders.

    Args:
        h: number of rows.
        w: number of columns.

    Returns:
        Values (h, w) in [0, 8], in the order of `fft2`.
    """
    along_y, along_x = (4.0 * np.square(np.sin(np.pi * np.fft.fftfreq(size))) for size in (h, w))
    return along_y[:, None] + along_x


def scale_frequencies(z: jax.Array, scales_HxW: jax.Array, d_f: int) -> jax.Array:
    """Multiplies the spatial frequencies of every channel, F⁻¹(s · F z) with F the orthonormal `fft2` over the tokens.

    Args:
        z: tokens (..., h·w·d_f), laid out (h, w, d_f).
        scales_HxW: factors s in the order of `fft2`, the same for f_x and −f_x and for f_y and −f_y.
        d_f: number of channels.

    Returns:
        An array like z, in float32 or wider.

    Raises:
        ValueError: for a z of another size.
    """
    h, w = scales_HxW.shape
    tokens = _widened(z, h * w * d_f, f"h·w·d_f = {h}·{w}·{d_f}").reshape(*z.shape[:-1], h, w, d_f)
    spectrum = jnp.fft.rfft2(tokens, axes=(-3, -2), norm="ortho")
    # A real signal has the conjugate values at −f_x, which are not computed.
    scales = jnp.asarray(scales_HxW, tokens.dtype)[:, : w // 2 + 1, None]
    return jnp.fft.irfft2(scales * spectrum, s=(h, w), axes=(-3, -2), norm="ortho").reshape(z.shape)


def identity() -> Geometry:
    """The isotropic geometry, H = I: with it HamSIGReg is SIGReg.

    Returns:
        z → z, in float32 or wider.
    """
    return lambda z: _widened(z, jnp.shape(z)[-1], "D")


def diag_eigenvalues(dim: int) -> np.ndarray:
    """The diagonal of `diag`, equally spaced numbers from 1 to 2 over their geometric mean.

    Args:
        dim: dimension D.

    Returns:
        Eigenvalues (D,).

    Raises:
        ValueError: for no dimension.
    """
    _require_positive(dim=dim)
    eigenvalues = np.linspace(1.0, 2.0, dim)
    return eigenvalues / np.exp(np.mean(np.log(eigenvalues)))


def diag(dim: int) -> Geometry:
    """The geometry that weighs the coordinates, H diagonal with the numbers v of `diag_eigenvalues`.

    Args:
        dim: dimension D.

    Returns:
        z (..., D) → √v · z.

    Raises:
        ValueError: for no dimension; the function it returns, for a z of another size.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    scales = np.sqrt(diag_eigenvalues(dim))

    def apply(z: jax.Array) -> jax.Array:
        z = _widened(z, dim, "D")
        return z * jnp.asarray(scales, z.dtype)

    return apply


def chain_eigenvalues(dim: int, *, kappa: float, eps: float, beta: float = 1.0, normalize: str) -> np.ndarray:
    """The spectrum of `chain`, (1 − β) + β·λ_k with λ_k ∝ κν_k + ε and ν_k = 2 − 2cos(2πk/D).

    Args:
        dim: dimension D.
        kappa: strength κ ≥ 0 of the Laplacian.
        eps: ridge ε > 0.
        beta: share β in [0, 1] of the geometry, the rest being the isotropic one.
        normalize: whether λ has the mean (`trace`) or the geometric mean (`logdet`) 1, each over k = 0 … ⌊D/2⌋.

    Returns:
        Eigenvalues (⌊D/2⌋ + 1,) in the order of `rfft`; those of 0 < k < D/2 belong to two eigenvectors.

    Raises:
        ValueError: for no dimension, an unknown normalisation, or a κ, ε or β outside its range.
    """
    _require_positive(dim=dim)
    nu = 2.0 - 2.0 * np.cos(2.0 * np.pi * np.arange(dim // 2 + 1) / dim)
    return _eigenvalues(nu, kappa=kappa, eps=eps, beta=beta, normalize=normalize)


def chain(dim: int, *, kappa: float, eps: float, beta: float = 1.0, normalize: str) -> Geometry:
    """The geometry of a ring of coordinates, H = (1 − β)·I + β·(κL + ε·I)/c, with L the graph Laplacian of a cycle.

    Args:
        dim: dimension D.
        kappa: see `chain_eigenvalues`.
        eps: see `chain_eigenvalues`.
        beta: see `chain_eigenvalues`.
        normalize: what c is, `trace` or `logdet`, see `chain_eigenvalues`.

    Returns:
        z (..., D) → H^{1/2} z.

    Raises:
        ValueError: as `chain_eigenvalues`; the function it returns, for a z of another size.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    scales = np.sqrt(chain_eigenvalues(dim, kappa=kappa, eps=eps, beta=beta, normalize=normalize))

    def apply(z: jax.Array) -> jax.Array:
        z = _widened(z, dim, "D")
        return jnp.fft.irfft(jnp.asarray(scales, z.dtype) * jnp.fft.rfft(z, norm="ortho"), n=dim, norm="ortho")

    return apply


def grid_eigenvalues(h: int, w: int, *, kappa: float, eps: float, beta: float = 1.0, normalize: str) -> np.ndarray:
    """The spectrum of `grid`, (1 − β) + β·λ with λ ∝ κν + ε and ν of `torus_laplacian`.

    Args:
        h: number of rows.
        w: number of columns.
        kappa: strength κ ≥ 0 of the Laplacian.
        eps: ridge ε > 0.
        beta: share β in [0, 1] of the geometry, the rest being the isotropic one.
        normalize: whether λ has the mean (`trace`) or the geometric mean (`logdet`) 1, over all frequencies.

    Returns:
        Eigenvalues (h, w) in the order of `fft2`, each of d_f channels.

    Raises:
        ValueError: for an empty grid, an unknown normalisation, or a κ, ε or β outside its range.
    """
    _require_positive(h=h, w=w)
    return _eigenvalues(torus_laplacian(h, w), kappa=kappa, eps=eps, beta=beta, normalize=normalize)


def grid(h: int, w: int, d_f: int, *, kappa: float, eps: float, beta: float = 1.0, normalize: str) -> Geometry:
    """The geometry of the token grid, H = (1 − β)·I + β·(κL + ε·I)/c per channel, with L the Laplacian of a torus.

    Args:
        h: number of rows of tokens.
        w: number of columns of tokens.
        d_f: number of channels.
        kappa: see `grid_eigenvalues`.
        eps: see `grid_eigenvalues`.
        beta: see `grid_eigenvalues`.
        normalize: what c is, `trace` or `logdet`, see `grid_eigenvalues`.

    Returns:
        z (..., h·w·d_f), laid out (h, w, d_f) → H^{1/2} z.

    Raises:
        ValueError: as `grid_eigenvalues`, or for no channels; the function it returns, for a z of another size.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    _require_positive(d_f=d_f)
    scales_HxW = np.sqrt(grid_eigenvalues(h, w, kappa=kappa, eps=eps, beta=beta, normalize=normalize))
    return lambda z: scale_frequencies(z, scales_HxW, d_f)
