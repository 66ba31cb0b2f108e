import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.stats import spectral
from hamjepa_jax.stats.slicing import random_directions, sigreg


def ring(size):
    """The graph Laplacian of a cycle."""
    return 2 * np.eye(size) - np.roll(np.eye(size), 1, axis=0) - np.roll(np.eye(size), -1, axis=0)


def torus(h, w, d_f):
    """The graph Laplacian of a periodic grid, for every channel."""
    return np.kron(np.kron(ring(h), np.eye(w)) + np.kron(np.eye(h), ring(w)), np.eye(d_f))


def one_of_each_pair(eigenvalues):
    """Of the sorted eigenvalues of a cycle, 0 once, pairs once, and the largest once where the size is even."""
    return eigenvalues[[0, *range(1, len(eigenvalues), 2)]]


def every(eigenvalues):
    return eigenvalues


def dense(laplacian, counted, *, kappa, eps, beta=1.0, normalize):
    """H as a matrix, by the definition, the normalisation being over the eigenvalues that are counted."""
    matrix = kappa * laplacian + eps * np.eye(len(laplacian))
    eigenvalues = counted(np.linalg.eigvalsh(matrix))
    scale = np.mean(eigenvalues) if normalize == "trace" else np.prod(eigenvalues) ** (1 / len(eigenvalues))
    return (1 - beta) * np.eye(len(laplacian)) + beta * matrix / scale


TRACE = {"kappa": 1.0, "eps": 0.1, "normalize": "trace"}
LOGDET = {"kappa": 0.5, "eps": 0.3, "beta": 0.6, "normalize": "logdet"}
# The map, and H built without a Fourier transform.
GEOMETRIES = {
    "identity": (spectral.identity(), np.eye(5)),
    "diag": (spectral.diag(3), np.diag([1, 1.5, 2]) / 3 ** (1 / 3)),
    "chain, even": (spectral.chain(8, **TRACE), dense(ring(8), one_of_each_pair, **TRACE)),
    "chain, odd": (spectral.chain(7, **LOGDET), dense(ring(7), one_of_each_pair, **LOGDET)),
    "chain of two": (spectral.chain(2, **LOGDET), dense(ring(2), one_of_each_pair, **LOGDET)),
    "grid": (spectral.grid(3, 4, 2, **TRACE), dense(torus(3, 4, 2), every, **TRACE)),
    "grid, odd": (spectral.grid(2, 3, 1, **LOGDET), dense(torus(2, 3, 1), every, **LOGDET)),
}


@pytest.fixture(params=list(GEOMETRIES))
def geometry(request):
    """The map, H, and the matrix of H^{1/2} that the map is, in double precision."""
    with jax.enable_x64(True):
        root, h = GEOMETRIES[request.param]
        yield jax.jit(root), h, np.asarray(root(jnp.eye(len(h)))).T


def test_the_map_is_the_positive_square_root_of_a_matrix_built_without_fourier_transforms(geometry):
    _, h, root_matrix = geometry
    np.testing.assert_allclose(root_matrix @ root_matrix, h, atol=1e-13)
    np.testing.assert_allclose(root_matrix, root_matrix.T, atol=1e-14)
    assert np.min(np.linalg.eigvalsh(root_matrix)) > 0


def test_every_leading_index_is_mapped_on_its_own(geometry):
    root, h, root_matrix = geometry
    z = np.random.default_rng(0).normal(size=(2, 3, len(h)))
    np.testing.assert_allclose(root(z), z @ root_matrix.T, atol=1e-13)


def test_sigreg_of_the_mapped_batch_is_sigreg_along_the_mapped_directions(geometry):
    root, h, _ = geometry
    z = jax.random.normal(jax.random.key(0), (2, 20, len(h)))
    directions = random_directions(jax.random.key(1), len(h), 6)
    expected = sigreg(root(z), directions)
    np.testing.assert_allclose(sigreg(z, root(directions.T).T), expected, rtol=1e-12)


def test_the_spectra_are_those_of_the_matrices():
    _, h_chain = GEOMETRIES["chain, odd"]
    found = spectral.chain_eigenvalues(7, **LOGDET)
    np.testing.assert_allclose(found, one_of_each_pair(np.linalg.eigvalsh(h_chain)), rtol=1e-12)
    assert spectral.chain_eigenvalues(8, **TRACE).shape == (5,)
    _, h_grid = GEOMETRIES["grid"]
    found = spectral.grid_eigenvalues(3, 4, **TRACE)
    assert found.shape == (3, 4)
    np.testing.assert_allclose(np.repeat(np.sort(found, axis=None), 2), np.linalg.eigvalsh(h_grid), rtol=1e-12)
    np.testing.assert_allclose(spectral.diag_eigenvalues(3), np.diag(GEOMETRIES["diag"][1]), rtol=1e-12)


def test_frequencies_by_hand():
    np.testing.assert_allclose(spectral.squared_radius(2, 3), [[0, 1 / 9, 1 / 9], [1 / 4, 13 / 36, 13 / 36]])
    np.testing.assert_allclose(spectral.torus_laplacian(2, 4), [[0, 2, 4, 2], [4, 6, 8, 6]], atol=1e-15)


@pytest.mark.parametrize("normalize", spectral.NORMALIZATIONS)
def test_the_normalised_spectrum_has_mean_or_geometric_mean_one(normalize):
    mean = np.mean if normalize == "trace" else lambda x: np.exp(np.mean(np.log(x)))
    settings = {"kappa": 2.0, "eps": 0.01, "normalize": normalize}
    assert mean(spectral.chain_eigenvalues(9, **settings)) == pytest.approx(1)
    assert mean(spectral.grid_eigenvalues(4, 3, **settings)) == pytest.approx(1)
    # β = 1 unless it is given, and β = 0 is isotropic.
    np.testing.assert_array_equal(spectral.grid_eigenvalues(4, 3, **settings, beta=0.0), 1)
    found = spectral.chain_eigenvalues(9, **settings)
    np.testing.assert_array_equal(found, spectral.chain_eigenvalues(9, **settings, beta=1.0))
    np.testing.assert_allclose(spectral.chain_eigenvalues(9, **settings, beta=0.25), 0.75 + 0.25 * found)


@pytest.mark.parametrize("name", list(GEOMETRIES))
def test_results_are_in_float32_or_wider_and_never_wider_than_the_input(name, double_precision):
    root, h = GEOMETRIES[name]
    half = jax.random.normal(jax.random.key(0), (3, len(h)), jnp.bfloat16)
    np.testing.assert_array_equal(root(half), root(half.astype(jnp.float32)))
    assert root(half).dtype == jnp.float32
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(root)(jnp.ones(len(h), jnp.float32))
        assert not double_precision(jaxpr.jaxpr)
        assert root(jnp.ones(len(h))).dtype == jnp.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spectral.diag(0), "dim: must be at least 1, got 0"),
        (lambda: spectral.chain(0, **TRACE), "dim: must be at least 1, got 0"),
        (lambda: spectral.grid(0, 4, 2, **TRACE), "h: must be at least 1, got 0"),
        (lambda: spectral.grid(3, 0, 2, **TRACE), "w: must be at least 1, got 0"),
        (lambda: spectral.grid(3, 4, 0, **TRACE), "d_f: must be at least 1, got 0"),
        (lambda: spectral.chain(4, **TRACE | {"normalize": "max"}), "'max' is unknown; known: trace, logdet"),
        (lambda: spectral.grid(4, 4, 1, **TRACE | {"normalize": "max"}), "'max' is unknown; known: trace, logdet"),
        (lambda: spectral.chain(4, **TRACE | {"eps": 0.0}), "eps > 0 .* make H positive definite, got 1.0, 0.0, 1.0"),
        (lambda: spectral.chain(4, **TRACE | {"kappa": -1.0}), "kappa ≥ 0"),
        (lambda: spectral.chain(4, **TRACE, beta=1.1), "0 ≤ beta ≤ 1"),
        (lambda: spectral.chain(4, **TRACE, beta=-0.1), "0 ≤ beta ≤ 1"),
        (lambda: spectral.diag(4)(jnp.ones((2, 1))), r"D = 4 entries, got the shape \(2, 1\)"),
        (lambda: spectral.chain(4, **TRACE)(jnp.ones(8)), r"D = 4 entries, got the shape \(8,\)"),
        (lambda: spectral.grid(3, 4, 2, **TRACE)(jnp.ones(12)), r"h·w·d_f = 3·4·2 = 24 entries, got the shape \(12,\)"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
