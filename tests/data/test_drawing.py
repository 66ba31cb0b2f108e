"""The laws of the parameters of views."""

import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from significance import COUNT, assert_independent, assert_likely, assert_uniform

from hamjepa_jax.data import augment, views
from hamjepa_jax.data.loading import draw_crop_box

# Compiling takes most of the time here, and the less is optimised, the less it takes.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Not symmetric, so that rows and columns cannot be exchanged.
RATIO = (0.7, 1.6)
IMAGE_SIZES = [(32, 32), (375, 500), (8, 100), (2, 3)]
SCALES = [(0.3, 1.0), (0.05, 0.3)]
NEUTRAL = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
STRENGTHS = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1}
PROBABILITIES = {"flip": 0.5, "jitter": 0.8, "grayscale": 0.3, "blur": 0.6, "solarize": 0.2}
SIGMAS = (0.1, 2.0)


# Boxes


@jit
def crops_of_keys(key, image_size, scale, ratio):
    keys = jax.random.split(key, COUNT)
    return jax.vmap(lambda key: views.draw_crop(key, image_size, scale=scale, ratio=ratio))(keys)


@functools.cache
def device_boxes(seed, image_size, scale, ratio):
    boxes = crops_of_keys(jax.random.key(seed), jnp.asarray(image_size, jnp.int32), scale, ratio)
    assert {leaf.dtype for leaf in boxes} == {jnp.dtype("int32")}
    return np.stack(boxes, axis=1)


def host_boxes(seed, image_size, scale, ratio):
    rng = np.random.default_rng(seed)
    return np.array([draw_crop_box(rng, *image_size, scale=scale, ratio=ratio) for _ in range(COUNT)])


def torchvision_boxes(seed, image_size, scale, ratio):
    """Top, left, height and width of boxes by the algorithm of `torchvision.transforms.RandomResizedCrop`."""
    rng = np.random.default_rng(seed)
    full_height, full_width = image_size
    boxes, found = np.zeros((COUNT, 4), int), np.zeros(COUNT, bool)
    for _ in range(10):
        area = full_height * full_width * rng.uniform(*scale, COUNT)
        aspect = np.exp(rng.uniform(*np.log(ratio), COUNT))
        width, height = (np.round(np.sqrt(x)).astype(int) for x in (area * aspect, area / aspect))
        new = ~found & (width > 0) & (width <= full_width) & (height > 0) & (height <= full_height)
        top, left = rng.integers(full_height - height[new] + 1), rng.integers(full_width - width[new] + 1)
        boxes[new] = np.stack([top, left, height[new], width[new]], axis=1)
        found |= new
    height, width = full_height, full_width
    if full_width / full_height < ratio[0]:
        height = round(full_width / ratio[0])
    elif full_width / full_height > ratio[1]:
        width = round(full_height * ratio[1])
    boxes[~found] = ((full_height - height) // 2, (full_width - width) // 2, height, width)
    return boxes


def characteristics(boxes, image_size):
    top, left, height, width = boxes.T
    relative_top, relative_left = top / (image_size[0] - height + 1), left / (image_size[1] - width + 1)
    return {
        "area": height * width,
        "aspect": width / height,
        "relative top": relative_top,
        "relative left": relative_left,
        "height": height,
        "width": width,
        "top": top,
        "left": left,
        "bottom": top + height,
        "right": left + width,
        "product": relative_top * relative_left,
        "difference": relative_top - relative_left,
    }


def assert_same_law(boxes, others, image_size):
    found, expected = characteristics(boxes, image_size), characteristics(others, image_size)
    for name in found:
        # Ties make the test reject less often than stated.
        pvalue = scipy.stats.ks_2samp(found[name], expected[name], method="asymp").pvalue
        assert_likely(name, pvalue)
    # The joint law of area, aspect and place, each cut in three; what is rare is put together.
    cells = [np.zeros(len(boxes), int), np.zeros(len(others), int)]
    for name in ("area", "aspect", "relative top", "relative left"):
        edges = np.quantile(expected[name], [1 / 3, 2 / 3])
        cells = [3 * cell + np.digitize(x[name], edges) for cell, x in zip(cells, (found, expected), strict=True)]
    counts = np.array([np.bincount(cell, minlength=81) for cell in cells])
    rare = counts.sum(0) < 40
    counts = np.concatenate([counts[:, ~rare], counts[:, rare].sum(1, keepdims=True)], axis=1)
    assert_likely("joint law", scipy.stats.chi2_contingency(counts[:, counts.sum(0) > 0]).pvalue)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("image_size", IMAGE_SIZES)
def test_boxes_lie_inside_the_image(image_size, scale):
    top, left, height, width = device_boxes(0, image_size, scale, RATIO).T
    assert min(top.min(), left.min()) == 0
    assert min(height.min(), width.min()) >= 1
    assert np.max(top + height) == image_size[0]
    assert np.max(left + width) <= image_size[1]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("image_size", IMAGE_SIZES)
def test_boxes_have_the_law_of_torchvision(image_size, scale):
    expected = torchvision_boxes(1, image_size, scale, RATIO)
    assert_same_law(device_boxes(0, image_size, scale, RATIO), expected, image_size)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("image_size", IMAGE_SIZES)
def test_the_host_draws_boxes_of_the_same_law_as_the_device(image_size, scale):
    assert_same_law(host_boxes(2, image_size, scale, RATIO), device_boxes(0, image_size, scale, RATIO), image_size)


def test_area_aspect_and_place_are_uniform_where_every_try_fits():
    # So large an image that rounding to pixels does not matter; no box of these shapes is too high or too wide.
    size, scale, ratio = (37_500, 50_000), (0.3, 0.6), (0.9, 1.1)
    top, left, height, width = device_boxes(3, size, scale, ratio).T.astype(float)
    variables = {
        "area": (height * width / (size[0] * size[1]), 0.2999, 0.6001),
        "log aspect": (np.log(width / height), np.log(0.8999), np.log(1.1001)),
        "top": (top / (size[0] - height + 1), 0, 1),
        "left": (left / (size[1] - width + 1), 0, 1),
    }
    for name, (values, low, high) in variables.items():
        assert_uniform(name, values, low, high)
    for first, second in itertools.combinations(variables, 2):
        assert_independent(f"{first} and {second}", variables[first][0], variables[second][0])


def test_every_place_is_equally_likely():
    # A quarter of the area as a square, which has 17×17 places.
    boxes = device_boxes(4, (32, 32), (0.25, 0.25), (1.0, 1.0))
    assert np.all(boxes[:, 2:] == 16)
    counts = np.bincount(17 * boxes[:, 0] + boxes[:, 1])
    assert len(counts) == 17 * 17
    assert_likely("places", scipy.stats.chisquare(counts).pvalue)


@pytest.mark.parametrize(
    ("image_size", "box"),
    [
        ((1, 1000), (0, 499, 1, 1)),
        ((1000, 1), (499, 0, 1, 1)),
        ((8, 100), (0, 44, 8, 11)),
        ((100, 8), (44, 0, 11, 8)),
        ((20, 101), (0, 37, 20, 27)),
    ],
)
def test_the_largest_central_box_is_taken_where_nothing_fits(image_size, box):
    scale, ratio = (0.9, 1.0), (3 / 4, 4 / 3)
    np.testing.assert_array_equal(device_boxes(5, image_size, scale, ratio), np.tile(box, (COUNT, 1)))
    assert draw_crop_box(np.random.default_rng(0), *image_size, scale=scale, ratio=ratio) == box


# Appearances


@jit
def appearances_of_keys(key, settings):
    return jax.vmap(partial(views.draw_appearance, **settings))(jax.random.split(key, COUNT))


@functools.cache
def appearances(seed, **changes):
    """What is drawn for many keys; the coins by their names; and the factors in the order of `COLOR_OPERATIONS`."""
    settings = PROBABILITIES | STRENGTHS | {"blur_sigma": SIGMAS} | changes
    drawn = jax.tree.map(np.asarray, appearances_of_keys(jax.random.key(seed), settings))
    np.testing.assert_array_equal(np.sort(drawn.operations, axis=1), np.tile(np.arange(4), (COUNT, 1)))
    factors = np.take_along_axis(drawn.factors, np.argsort(drawn.operations, axis=1), axis=1)
    coins = {
        "flip": drawn.flip,
        "jitter": np.any(factors != NEUTRAL, axis=1),
        "grayscale": drawn.grayscale,
        "blur": drawn.blur_sigma > 0,
        "solarize": drawn.solarize,
    }
    return drawn, coins, factors


@pytest.mark.parametrize("coin", PROBABILITIES)
def test_coins_fall_with_their_probability(coin):
    _, coins, _ = appearances(0)
    assert coins[coin].dtype == bool
    assert_likely(coin, scipy.stats.binomtest(int(coins[coin].sum()), COUNT, PROBABILITIES[coin]).pvalue)


@pytest.mark.parametrize("pair", list(itertools.combinations(PROBABILITIES, 2)))
def test_coins_are_independent(pair):
    _, coins, _ = appearances(0)
    counts = np.bincount(2 * coins[pair[0]] + coins[pair[1]], minlength=4).reshape(2, 2)
    assert_likely(str(pair), scipy.stats.chi2_contingency(counts).pvalue)


def test_factors_are_uniform_in_their_ranges_and_neutral_without_jitter():
    _, coins, factors = appearances(0)
    jittered = factors[coins["jitter"]]
    for index, name in enumerate(augment.COLOR_OPERATIONS):
        center, strength = np.float64(NEUTRAL[index]), STRENGTHS[name]
        # Single precision may round a bound outwards.
        assert_uniform(name, jittered[:, index], center - strength - 1e-6, center + strength + 1e-6)
    assert not coins["jitter"].all()
    np.testing.assert_array_equal(factors[~coins["jitter"]], np.tile(NEUTRAL, (np.sum(~coins["jitter"]), 1)))


def test_the_width_of_the_blur_is_uniform_and_0_without_blur():
    drawn, coins, _ = appearances(0)
    assert_uniform("sigma", drawn.blur_sigma[coins["blur"]], *SIGMAS)
    np.testing.assert_array_equal(drawn.blur_sigma[~coins["blur"]], 0)


def test_all_orders_are_equally_likely():
    drawn, _, _ = appearances(0)
    _, counts = np.unique(drawn.operations, axis=0, return_counts=True)
    assert len(counts) == 24
    assert_likely("orders", scipy.stats.chisquare(counts).pvalue)


def test_factors_order_width_of_blur_and_coins_are_independent():
    drawn, coins, factors = appearances(0)
    both = coins["jitter"] & coins["blur"]
    variables = {f"factor {i}": factors[:, i] for i in range(4)}
    variables |= {f"place of {i}": np.argsort(drawn.operations, axis=1)[:, i] for i in range(4)}
    variables["sigma"] = drawn.blur_sigma
    for first, second in itertools.combinations(variables, 2):
        # The places of two operations are never the same.
        if not (first.startswith("place") and second.startswith("place")):
            assert_independent(f"{first} and {second}", variables[first][both], variables[second][both])
    for coin, variable in itertools.product(("flip", "grayscale", "solarize"), variables):
        heads, tails = variables[variable][both & coins[coin]], variables[variable][both & ~coins[coin]]
        assert_likely(f"{coin} and {variable}", scipy.stats.ks_2samp(heads, tails, method="asymp").pvalue)


@pytest.mark.parametrize("name", augment.COLOR_OPERATIONS)
def test_with_one_strength_only_the_factor_of_that_operation_varies(name):
    changes = dict.fromkeys(STRENGTHS, 0.0) | {name: 0.25, "jitter": 1.0}
    _, coins, factors = appearances(1, **changes, flip=1.0, grayscale=0.0, blur=1.0, solarize=0.0)
    index = augment.COLOR_OPERATIONS.index(name)
    center = np.float64(NEUTRAL[index])
    assert_uniform(name, factors[:, index], center - 0.25, center + 0.25)
    others = np.delete(np.arange(4), index)
    np.testing.assert_array_equal(factors[:, others], np.tile(NEUTRAL[others], (COUNT, 1)))
    # Probabilities of 0 and 1 are certainties.
    assert {coin: set(np.unique(coins[coin])) for coin in ("flip", "grayscale", "blur", "solarize")} == {
        "flip": {True},
        "grayscale": {False},
        "blur": {True},
        "solarize": {False},
    }


def test_factors_of_strengths_above_1_are_uniform_between_0_and_their_upper_bound():
    strengths = {"brightness": 2.0, "contrast": 1.5, "saturation": 3.0, "hue": 0.5}
    _, _, factors = appearances(2, **strengths, jitter=1.0)
    for index, name in enumerate(augment.COLOR_OPERATIONS[:3]):
        assert_uniform(name, factors[:, index], -1e-6, 1 + strengths[name] + 1e-6)
    assert_uniform("hue", factors[:, 3], -0.5, 0.5)
