import functools
import itertools
import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from significance import assert_independent

from hamjepa_jax import build_views, sharding
from hamjepa_jax.data import augment, views
from hamjepa_jax.data.views import Appearance, CroppedView, ViewGroup

# Compiling takes most of the time here, and the less is optimised, the less it takes.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SCALES = [(0.3, 1.0), (0.05, 0.3)]

OPERATIONS = np.array([2, 0, 3, 1], np.int32)
FACTORS = np.array([0.5, 1.3, 0.2, 0.7], np.float32)


def picture(seed=0, height=9, width=11):
    return np.random.default_rng(seed).uniform(size=(height, width, 3)).astype(np.float32)


def test_an_appearance_is_mirrored_jittered_greyed_blurred_and_solarised_in_this_order():
    cases = np.array(list(itertools.product((False, True), repeat=5)))
    flip, jitter, gray, blurred, solarized = cases.T
    appearance = Appearance(
        flip=flip,
        operations=np.tile(OPERATIONS, (32, 1)),
        factors=np.where(jitter[:, None], FACTORS, np.array([1.0, 1.0, 1.0, 0.0], np.float32)[OPERATIONS]),
        grayscale=gray,
        blur_sigma=np.where(blurred, np.float32(0.8), np.float32(0)),
        solarize=solarized,
    )
    finish = partial(views.apply_appearance, blur_kernel_size=5, solarize_threshold=0.55)
    found = jit(jax.vmap(finish, in_axes=(None, 0)))(picture(), appearance)

    @jit
    def jitter_in_turn(x):
        x = augment.adjust_saturation(x, FACTORS[0])
        x = augment.adjust_brightness(x, FACTORS[1])
        x = augment.adjust_hue(x, FACTORS[2])
        return augment.adjust_contrast(x, FACTORS[3])

    steps = (
        lambda x: x[:, ::-1],
        jitter_in_turn,
        jit(augment.to_grayscale),
        jit(lambda x: augment.gaussian_blur(x, 0.8, kernel_size=5)),
        lambda x: np.where(x >= 0.55, 1 - x, x),
    )
    expected = []
    for case in cases:
        x = picture()
        for step, done in zip(steps, case, strict=True):
            x = np.asarray(step(x)) if done else x
        expected.append(x)
    # A value within rounding of the threshold may fall on either side of it.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    differences = np.abs(np.array(expected)[:, None] - np.array(expected)).max(axis=(2, 3, 4))
    assert np.min(differences[~np.eye(32, dtype=bool)]) > 0.01
    np.testing.assert_array_equal(found[0], picture())


def test_one_factor_that_is_not_neutral_is_enough_for_its_operation_to_be_applied():
    neutral = np.array([1.0, 1.0, 1.0, 0.0], np.float32)[OPERATIONS]
    appearance = Appearance(
        flip=np.zeros(4, bool),
        operations=np.tile(OPERATIONS, (4, 1)),
        factors=np.where(np.eye(4, dtype=bool), FACTORS, neutral),
        grayscale=np.zeros(4, bool),
        blur_sigma=np.zeros(4, np.float32),
        solarize=np.zeros(4, bool),
    )
    finish = partial(views.apply_appearance, blur_kernel_size=5, solarize_threshold=0.55)
    found = jit(jax.vmap(finish, in_axes=(None, 0)))(picture(), appearance)
    adjust = (augment.adjust_saturation, augment.adjust_brightness, augment.adjust_hue, augment.adjust_contrast)
    expected = jit(lambda x: [operation(x, factor) for operation, factor in zip(adjust, FACTORS, strict=True)])
    np.testing.assert_allclose(found, expected(picture()), atol=1e-5)
    assert np.abs(found - picture()).max(axis=(1, 2, 3)).min() > 0.01


BATCH = 8
CANVAS, SIZE, LOCAL_SIZE = 24, 16, 8
KEY = jax.random.key(7)


def data_config(name="cifar100", **changes):
    path = Path(__file__).parents[2] / "configs" / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"]().data
    config.update(changes)
    return config


def multi_crop(**changes):
    changes = {"num_local_views": 2, "canvas_size": CANVAS, "view_size": SIZE, "local_view_size": LOCAL_SIZE} | changes
    return build_views.view_groups(data_config(**changes))


def canvases(seed=0, padding=0):
    """Images of different sizes at the top left of canvases; the sizes; the examples' numbers."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(9, CANVAS + 1, (BATCH, 2)).astype(np.int32)
    sizes[0], sizes[1] = CANVAS, (9, CANVAS)
    images = rng.integers(0, 256, (BATCH, CANVAS, CANVAS, 3)).astype(np.uint8)
    inside = np.arange(CANVAS) < sizes[:, :, None]
    images = np.where((inside[:, 0, :, None] & inside[:, 1, None, :])[..., None], images, np.uint8(padding))
    return images, sizes, np.array([5, 900, 17, 6, 70_000, 1, 0, 33], np.int32)


@jit
def draw(key, sizes, example_ids):
    return views.draw_views(key, sizes, example_ids, multi_crop())


@partial(jit, static_argnames="one_by_one")
def render(images, parameters, one_by_one=False):
    return tuple(
        views.render_views(images, group_parameters, group.render, one_by_one=one_by_one)
        for group_parameters, group in zip(parameters, multi_crop(), strict=True)
    )


def views_of(key, images, sizes, example_ids):
    return render(images, draw(key, sizes, example_ids))


@jit
def local_views_of(key, images, sizes, example_ids):
    """Only the local views, which costs less."""
    _, parameters = views.draw_views(key, sizes, example_ids, multi_crop())
    return views.render_views(images, parameters, multi_crop()[1].render, one_by_one=False)


def assert_views_equal(found, expected):
    for group, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(group, other, atol=1e-6)


def test_views_are_float32_images_of_their_own_sizes():
    global_views, local_views = views_of(KEY, *canvases())
    assert global_views.shape == (2, BATCH, SIZE, SIZE, 3)
    assert local_views.shape == (2, BATCH, LOCAL_SIZE, LOCAL_SIZE, 3)
    for group in (global_views, local_views):
        assert group.dtype == jnp.float32
        assert group.min() >= 0
        assert 0.5 < group.max() <= 1


def test_a_view_depends_on_key_view_and_example_and_not_on_the_place_in_the_batch():
    images, sizes, ids = canvases()
    expected = views_of(KEY, images, sizes, ids)
    order = np.random.default_rng(1).permutation(BATCH)
    moved = views_of(KEY, images[order], sizes[order], ids[order])
    assert_views_equal(moved, [group[:, order] for group in expected])
    assert_views_equal(views_of(KEY, images, sizes, ids), expected)
    few = local_views_of(KEY, images[3:6], sizes[3:6], ids[3:6])
    np.testing.assert_allclose(few, expected[1][:, 3:6], atol=1e-6)


def test_other_keys_views_and_examples_give_other_views():
    images, sizes, ids = canvases()
    # All examples have the same image, so that only their numbers differ.
    images, sizes = np.repeat(images[:1], BATCH, axis=0), np.repeat(sizes[:1], BATCH, axis=0)
    first, other_key = views_of(KEY, images, sizes, ids), views_of(jax.random.key(8), images, sizes, ids)
    other_ids = views_of(KEY, images, sizes, ids + 1)
    for group, *others in zip(first, other_key, other_ids, strict=True):
        for other in others:
            assert np.abs(group - other).max(axis=(2, 3, 4)).min() > 0.01
        pixels = np.asarray(group).reshape(2 * BATCH, -1)
        differences = np.abs(pixels[:, None] - pixels).max(axis=2)
        assert differences[~np.eye(2 * BATCH, dtype=bool)].min() > 0.01


def test_views_of_all_groups_are_counted_through():
    _, sizes, ids = canvases()

    @partial(jit, static_argnums=0)
    def keys_of_views(counts):
        """The key that each view of each example is drawn from, where the groups have these numbers of views."""
        groups = tuple(
            ViewGroup(count, lambda key, image_size, view_number: jax.random.key_data(key), None) for count in counts
        )
        return views.draw_views(KEY, sizes, ids, groups)

    (whole,) = keys_of_views((4,))
    np.testing.assert_array_equal(np.concatenate(keys_of_views((1, 3))), whole)
    np.testing.assert_array_equal(np.concatenate(keys_of_views((2, 1, 1))), whole)
    assert len(np.unique(whole.reshape(4 * BATCH, -1), axis=0)) == 4 * BATCH


@partial(jit, static_argnames="one_by_one")
def render_local(images, parameters, one_by_one):
    return views.render_views(images, parameters, multi_crop()[1].render, one_by_one=one_by_one)


def test_rendering_one_by_one_and_all_at_once_agree():
    images, sizes, ids = canvases()
    _, parameters = draw(KEY, sizes, ids)
    own_images = np.stack([images, canvases(1)[0]])
    shared, own = (render_local(x, parameters, one_by_one=False) for x in (images, own_images))
    np.testing.assert_allclose(render_local(images, parameters, one_by_one=True), shared, atol=1e-5)
    np.testing.assert_allclose(render_local(own_images, parameters, one_by_one=True), own, atol=1e-5)
    # The first views have the same images in both, the second ones have others.
    others = render_local(own_images[1], parameters, one_by_one=False)
    np.testing.assert_allclose(own, np.stack([shared[0], others[1]]), atol=1e-6)
    assert np.abs(shared[1] - others[1]).max(axis=(1, 2, 3)).min() > 0.1


def test_nothing_of_the_padding_of_a_canvas_enters_a_view():
    (images, sizes, ids), (padded, _, _) = canvases(), canvases(padding=255)
    assert np.abs(images.astype(int) - padded).max() > 0
    expected = views_of(KEY, images, sizes, ids)
    for found, other in zip(views_of(KEY, padded, sizes, ids), expected, strict=True):
        np.testing.assert_array_equal(found, other)


def test_a_batch_over_eight_devices_gives_the_same_views_each_computed_on_one():
    batch = canvases()
    placed = sharding.place(batch, sharding.batch_sharding(sharding.make_mesh(data=4, fsdp=2)))
    found = local_views_of(KEY, *placed)
    np.testing.assert_allclose(found, views_of(KEY, *batch)[1], atol=1e-6)
    assert len(found.sharding.device_set) == 8
    assert found.sharding.shard_shape(found.shape)[1] == 1


@functools.cache
def drawn_for_many_examples():
    """Parameters of the global and the local views of 4,000 examples of the same image size."""
    ids = jnp.arange(4000, dtype=jnp.int32)
    sizes = jnp.tile(jnp.asarray([375, 500], jnp.int32), (4000, 1))
    return jax.tree.map(np.asarray, draw(KEY, sizes, ids))


def test_global_and_local_boxes_cover_the_area_that_the_config_states():
    for group, (low, high) in zip(drawn_for_many_examples(), SCALES, strict=True):
        area = group.box.height * group.box.width / (375 * 500)
        # Boxes are rounded to pixels.
        assert low - 0.005 < area.min() < low + 0.01
        assert high - 0.03 < area.max() < high + 0.005


def test_boxes_appearances_views_and_examples_are_independent():
    group, _ = drawn_for_many_examples()
    variables = {
        "area": group.box.height * group.box.width,
        "aspect": group.box.width / group.box.height,
        "top": group.box.top / (375 - group.box.height + 1),
        "left": group.box.left / (500 - group.box.width + 1),
        "flip": group.appearance.flip,
        "grayscale": group.appearance.grayscale,
        "sigma": group.appearance.blur_sigma,
        "solarize": group.appearance.solarize,
    }
    box, appearance = list(variables)[:4], list(variables)[4:]
    for first, second in itertools.product(box, appearance):
        assert_independent(f"{first} and {second}", variables[first][0], variables[second][0])
    for name, values in variables.items():
        assert_independent(f"{name} of two views", values[0], values[1])
        assert_independent(f"{name} of two examples", values[0, :-1], values[0, 1:])


def test_the_appearance_is_the_same_whether_device_or_host_cuts_out_the_views():
    _, sizes, ids = canvases()
    (by_host,), (by_device, _) = multi_crop(canvas_size=None, num_local_views=0), multi_crop()
    (appearance,) = jit(partial(views.draw_views, groups=(by_host,)))(KEY, sizes, ids)
    jax.tree.map(np.testing.assert_array_equal, appearance, draw(KEY, sizes, ids)[0].appearance)

    # What the host has cut out is rendered like a box that is the whole image.
    @jit
    def render_both(crop, appearance):
        box = views.CropBox(*map(jnp.int32, (0, 0, SIZE, SIZE)))
        return by_host.render(crop, appearance), by_device.render(crop, CroppedView(box, appearance))

    crop = canvases()[0][0, :SIZE, :SIZE]
    for example in range(BATCH):
        found, expected = render_both(crop, jax.tree.map(lambda x, i=example: x[0, i], appearance))
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("kind", ["cropped by the device", "cropped by the host", "digits"])
def test_views_are_drawn_and_rendered_in_single_precision_where_double_is_allowed(kind, one_by_one, double_precision):
    groups, shape = {
        "cropped by the device": (multi_crop(), (BATCH, CANVAS, CANVAS, 3)),
        "cropped by the host": (multi_crop(canvas_size=None, num_local_views=0), (2, BATCH, SIZE, SIZE, 3)),
        "digits": (build_views.view_groups(data_config("digits")), (BATCH, 8, 8, 1)),
    }[kind]

    def draw_and_render(key, images, sizes, ids):
        parameters = views.draw_views(key, sizes, ids, groups)
        rendered = [
            views.render_views(images, group_parameters, group.render, one_by_one=one_by_one)
            for group_parameters, group in zip(parameters, groups, strict=True)
        ]
        return parameters, rendered

    shapes = (
        jax.eval_shape(jax.random.key, 0),
        jax.ShapeDtypeStruct(shape, jnp.uint8),
        jax.ShapeDtypeStruct((BATCH, 2), jnp.int32),
        jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    )
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(draw_and_render)(*shapes).jaxpr
    assert not double_precision(jaxpr)
