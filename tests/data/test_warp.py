import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from significance import COUNT, assert_independent, assert_likely, assert_uniform

from hamjepa_jax import build_views
from hamjepa_jax.data import views, warp

# Compiling takes most of the time here, and the less is optimised, the less it takes.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(7)
affine_warp = jax.jit(warp.affine_warp, static_argnames="size")


def test_identity_warp_keeps_the_digit():
    np.testing.assert_allclose(affine_warp(digit(), jnp.eye(2), jnp.zeros(2), size=8), digit(), atol=1e-6)


def test_translation_moves_by_pixels_and_fills_with_zeros():
    # A quarter of a half image size of 8 pixels is one pixel: row i shows row i + 1.
    moved = affine_warp(digit(), jnp.eye(2), jnp.array([0.25, 0.0]), size=8)
    np.testing.assert_allclose(moved[:-1], digit()[1:], atol=1e-6)
    np.testing.assert_allclose(moved[-1], 0, atol=1e-6)


def test_quarter_turn_rotates_the_digit():
    turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    turned = affine_warp(digit(), turn, jnp.zeros(2), size=8)
    # Output (r, c) shows input (c, 7 − r).
    np.testing.assert_allclose(turned, jnp.rot90(digit()), atol=1e-5)


def test_enlarging_interpolates_bilinearly():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 8, 1))
    enlarged = affine_warp(ramp, jnp.eye(2), jnp.zeros(2), size=16)
    np.testing.assert_allclose(enlarged[1:-1, 8, 0], jnp.arange(14) / 2 + 0.25, atol=1e-5)


WARP = {"max_rotation": 15.0, "max_log_scale": 0.15, "max_shift": 0.08, "max_contrast": 0.3}
STILL = dict.fromkeys(WARP, 0.0)


def digit(seed=0):
    return jax.random.uniform(jax.random.key(seed), (8, 8, 1))


@jit
def warped_digit(key, image, settings, noise_std):
    return warp.render_warp(image, warp.draw_warp(key, **settings), size=8, noise_std=noise_std)


rendered_digit = jit(warp.render_warp, static_argnames=("size", "noise_std"))


def view_of_digit(angle=0.0, scale=(1.0, 1.0), shift=(0.0, 0.0), contrast=1.0, noise=0):
    return warp.WarpedView(*map(jnp.float32, (angle, scale, shift, contrast)), noise_key=jax.random.key(noise))


def test_a_view_of_a_digit_with_everything_off_is_the_image():
    view = warped_digit(KEY, digit(), STILL, 0.0)
    np.testing.assert_allclose(view, digit(), atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_rotation", 30.0), ("max_log_scale", 0.3), ("max_shift", 0.2), ("max_contrast", 0.5), ("noise_std", 0.1)],
)
def test_every_setting_changes_the_view_of_a_digit(setting, value):
    settings = STILL | {"noise_std": 0.0} | {setting: value}
    noise_std = settings.pop("noise_std")
    view = warped_digit(jax.random.key(0), digit(), settings, noise_std)
    assert np.abs(view - digit()).max() > 0.02
    assert view.min() >= 0
    assert view.max() <= 1


def test_a_warp_rotates_scales_and_shifts_by_what_it_says():
    np.testing.assert_allclose(
        rendered_digit(digit(), view_of_digit(angle=90.0), size=8, noise_std=0.0), jnp.rot90(digit()), atol=1e-5
    )
    moved = rendered_digit(digit(), view_of_digit(shift=(1 / 8, 2 / 8)), size=8, noise_std=0.0)
    np.testing.assert_allclose(moved[:-1, :-2], digit()[1:, 2:], atol=1e-5)
    np.testing.assert_allclose(moved[-1], 0, atol=1e-5)
    rows, columns = np.meshgrid(*2 * [(np.arange(8) + 0.5) / 8], indexing="ij")
    ramps = np.stack([rows, columns], axis=-1).astype(np.float32)
    enlarged = rendered_digit(ramps, view_of_digit(scale=(2.0, 4.0)), size=8, noise_std=0.0)
    expected = np.stack([0.5 + (rows - 0.5) / 2, 0.5 + (columns - 0.5) / 4], axis=-1)
    np.testing.assert_allclose(enlarged, expected, atol=1e-5)
    # The digit is turned first, and what comes out is enlarged along the rows and columns of the view.
    turned = rendered_digit(ramps, view_of_digit(angle=90.0, scale=(2.0, 4.0)), size=8, noise_std=0.0)
    expected = np.stack([0.5 + (columns - 0.5) / 4, 0.5 - (rows - 0.5) / 2], axis=-1)
    np.testing.assert_allclose(turned, expected, atol=1e-5)


def test_contrast_scales_the_values_of_a_digit_and_noise_has_its_deviation():
    scaled = rendered_digit(digit(), view_of_digit(contrast=1.5), size=8, noise_std=0.0)
    np.testing.assert_allclose(scaled, np.minimum(1.5 * digit(), 1), atol=1e-5)
    gray = jnp.full((100, 100, 1), 0.5)
    first, second = (
        # The contrast is that of the digit, not of the noise.
        np.asarray(rendered_digit(gray, view_of_digit(contrast=0.8, noise=seed), size=100, noise_std=0.05)).ravel()
        - 0.4
        for seed in (0, 1)
    )
    assert_likely("noise", scipy.stats.kstest(first / 0.05, scipy.stats.norm.cdf).pvalue)
    assert_independent("noise of two keys", first, second)


def test_warps_are_uniform_in_their_ranges_and_independent():
    keys = jax.random.split(jax.random.key(9), COUNT)
    drawn = jit(jax.vmap(partial(warp.draw_warp, **WARP)))(keys)
    (row_scale, column_scale), (row_shift, column_shift) = np.log(drawn.scale).T, np.asarray(drawn.shift).T
    noise = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, -1.0, 1.0))(drawn.noise_key)
    variables = {
        "angle": (np.asarray(drawn.angle), 15.0),
        "row scale": (row_scale, 0.15),
        "column scale": (column_scale, 0.15),
        "row shift": (row_shift, 0.08),
        "column shift": (column_shift, 0.08),
        "contrast": (np.asarray(drawn.contrast, np.float64) - 1.0, 0.3),
        "noise": (np.asarray(noise), 1.0),
    }
    for name, (values, bound) in variables.items():
        # Single precision may round a bound outwards.
        assert_uniform(name, values, -bound - 1e-6, bound + 1e-6)
    for first, second in itertools.combinations(variables, 2):
        assert_independent(f"{first} and {second}", variables[first][0], variables[second][0])


def test_digits_of_a_batch_have_views_that_depend_on_key_view_and_example_only(digits_config):
    (group,) = build_views.view_groups(digits_config().data)
    images = np.asarray(255 * jnp.stack([digit(0), digit(0), digit(1)])).astype(np.uint8)

    @jit
    def views_of_digits(key, images, ids):
        sizes = jnp.full((len(ids), 2), 8, jnp.int32)
        (parameters,) = views.draw_views(key, sizes, ids, (group,))
        return views.render_views(images, parameters, group.render, one_by_one=False)

    found = views_of_digits(KEY, images, np.array([5, 6, 7], np.int32))
    assert found.shape == (2, 3, 8, 8, 1)
    assert np.abs(found[0] - found[1]).max(axis=(1, 2, 3)).min() > 0.05
    assert np.abs(found[:, 0] - found[:, 1]).max() > 0.05
    moved = views_of_digits(KEY, images[[2, 0, 1]], np.array([7, 5, 6], np.int32))
    np.testing.assert_allclose(moved, found[:, [2, 0, 1]], atol=1e-6)
    other_step = views_of_digits(jax.random.key(8), images, np.array([5, 6, 7], np.int32))
    assert np.abs(other_step - found).max() > 0.05
    # White is 1 at full contrast, but for the noise, of which 64 pixels have the mean.
    white = jit(group.render)(np.full((8, 8, 1), 255, np.uint8), view_of_digit(contrast=0.5))
    assert abs(white.mean() - 0.5) < 0.03


def test_a_warp_is_computed_in_single_precision_where_double_is_allowed(double_precision):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((7, 11, 3), (2, 2), (2,))]
    with jax.enable_x64(True):
        found = jax.make_jaxpr(partial(warp.affine_warp, size=8))(*shapes)
    assert {out.dtype for out in found.out_avals} == {jnp.dtype("float32")}
    assert not double_precision(found.jaxpr)
