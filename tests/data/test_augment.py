from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.data import augment

GENTLE = {
    "size": 8,
    "max_rotation": 15.0,
    "max_log_scale": 0.15,
    "max_shift": 0.08,
    "max_contrast": 0.3,
    "noise_std": 0.05,
}
OFF = dict.fromkeys(GENTLE, 0.0) | {"size": 8}


def image(seed=0):
    return jax.random.uniform(jax.random.key(seed), (8, 8, 1))


def test_identity_warp_keeps_the_image():
    np.testing.assert_allclose(augment.affine_warp(image(), jnp.eye(2), jnp.zeros(2), size=8), image(), atol=1e-6)


def test_translation_moves_by_pixels_and_fills_with_zeros():
    # A quarter of a half image size of 8 pixels is one pixel: row i shows row i + 1.
    moved = augment.affine_warp(image(), jnp.eye(2), jnp.array([0.25, 0.0]), size=8)
    np.testing.assert_allclose(moved[:-1], image()[1:], atol=1e-6)
    np.testing.assert_allclose(moved[-1], 0, atol=1e-6)


def test_quarter_turn_rotates_the_image():
    turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    turned = augment.affine_warp(image(), turn, jnp.zeros(2), size=8)
    # Output (r, c) shows input (c, 7 − r).
    np.testing.assert_allclose(turned, jnp.rot90(image()), atol=1e-5)


def test_enlarging_interpolates_bilinearly():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 8, 1))
    enlarged = augment.affine_warp(ramp, jnp.eye(2), jnp.zeros(2), size=16)
    np.testing.assert_allclose(enlarged[1:-1, 8, 0], jnp.arange(14) / 2 + 0.25, atol=1e-5)


def test_a_view_with_everything_off_is_the_image():
    np.testing.assert_allclose(augment.digit_view(jax.random.key(0), image(), **OFF), image(), atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_rotation", 30.0), ("max_log_scale", 0.3), ("max_shift", 0.2), ("max_contrast", 0.5), ("noise_std", 0.1)],
)
def test_every_setting_changes_the_view(setting, value):
    view = augment.digit_view(jax.random.key(0), image(), **OFF | {setting: value})
    assert np.abs(view - image()).max() > 0.02
    assert view.min() >= 0
    assert view.max() <= 1


def test_views_depend_on_key_view_and_example_only():
    images = (255 * jnp.stack([image(0), image(0), image(1)])).astype(jnp.uint8)
    draw = jax.jit(partial(augment.make_views, view=partial(augment.digit_view, **GENTLE), num_views=2))
    views = draw(jax.random.key(0), images, jnp.array([5, 6, 7]))
    assert views.shape == (2, 3, 8, 8, 1)
    assert np.abs(views[0] - views[1]).max() > 0.05
    assert np.abs(views[:, 0] - views[:, 1]).max() > 0.05
    alone = draw(jax.random.key(0), images[2:], jnp.array([7]))
    np.testing.assert_allclose(alone[:, 0], views[:, 2], atol=1e-6)
    other_step = draw(jax.random.key(1), images, jnp.array([5, 6, 7]))
    assert np.abs(other_step - views).max() > 0.05


def test_normalize_and_resize():
    np.testing.assert_allclose(augment.normalize(jnp.full((2, 2, 1), 0.5), (0.25,), (0.5,)), 0.5)
    np.testing.assert_allclose(augment.resize(image(), size=8), image(), atol=1e-6)
    assert augment.resize(image(), size=16).shape == (16, 16, 1)
