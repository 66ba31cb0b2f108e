from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.models import minimal_filtering
from hamjepa_jax.models.minimal_filtering import convolve_3x3


def tap_by_tap(x, kernel, stride):
    """What XLA makes of the same convolution."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("HWNC", "HWIO", "HWNC")
    )


@partial(jax.jit, static_argnums=0)
def value_and_gradients(convolve, x, kernel, cotangent):
    y, pull_back = jax.vjp(convolve, x, kernel)
    return y, *pull_back(cotangent)


def normal(seed, *shape, dtype=None):
    return jax.random.normal(jax.random.key(seed), shape, dtype or jnp.float64)


@pytest.mark.parametrize(("stride", "tile", "products"), [(1, 2, 4), (1, 4, 6), (2, 2, 5), (2, 4, 9)])
def test_a_row_is_filtered_in_fewer_products_than_taps_meet_inputs(stride, tile, products):
    outputs, kernel, inputs = minimal_filtering.algorithm(stride, tile)
    assert len(kernel) == products < 3 * tile
    rng = np.random.default_rng(0)
    taps, x = rng.standard_normal(3), rng.standard_normal(inputs.shape[1])
    expected = [taps @ x[stride * o : stride * o + 3] for o in range(tile)]
    np.testing.assert_allclose(outputs @ ((kernel @ taps) * (inputs @ x)), expected, rtol=1e-13)


def test_only_two_strides_are_known():
    with pytest.raises(ValueError, match="stride: must be 1 or 2, got 3"):
        minimal_filtering.algorithm(3, 4)


# Maps of whole tiles, of broken ones, and those smaller than a kernel.
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 1), (2, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_and_its_gradients_are_those_tap_by_tap(float64, size, stride):
    x, kernel = normal(0, *size, 3, 4), normal(1, 3, 3, 4, 5)
    expected = tap_by_tap(x, kernel, stride)
    cotangent = normal(2, *expected.shape)
    found = value_and_gradients(partial(convolve_3x3, stride=stride), x, kernel, cotangent)
    for one, other in zip(
        found, value_and_gradients(partial(tap_by_tap, stride=stride), x, kernel, cotangent), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-13 * np.abs(other).max(), rtol=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_rounding_is_that_of_adding_tap_by_tap_and_in_gradients_a_few_times_that(float64, stride):
    x, kernel = normal(0, 16, 16, 4, 64), normal(1, 3, 3, 64, 32)
    cotangent = normal(2, *tap_by_tap(x, kernel, stride).shape)
    exact = value_and_gradients(partial(tap_by_tap, stride=stride), x, kernel, cotangent)
    narrow = [array.astype(jnp.float32) for array in (x, kernel, cotangent)]
    errors = [
        [
            np.sqrt(np.mean(np.square(one - other)))
            for one, other in zip(value_and_gradients(partial(convolve, stride=stride), *narrow), exact, strict=True)
        ]
        for convolve in (convolve_3x3, tap_by_tap)
    ]
    times = np.divide(*errors)
    assert times[0] < 1.5
    assert np.all(times[1:] < 5)
