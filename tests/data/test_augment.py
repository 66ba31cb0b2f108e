import colorsys
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax.data import augment

pytestmark = pytest.mark.usefixtures("compiled_with_optimizations")

# Compiling takes most of the time here, and the less is optimised, the less it takes.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
COLOR = {
    "brightness": jit(augment.adjust_brightness),
    "contrast": jit(augment.adjust_contrast),
    "saturation": jit(augment.adjust_saturation),
    "hue": jit(augment.adjust_hue),
}
grayscale, solarize = jit(augment.to_grayscale), jit(augment.solarize)
blur = jit(augment.gaussian_blur, static_argnames="kernel_size")
# Compiled as it is in training: what XLA then computes twice may be rounded in two ways.
crop = jax.jit(augment.resized_crop, static_argnames="size")
RED, GREEN, BLUE, CYAN = (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)


def colors(seed=0, height=7, width=11):
    """Random colours, some of them grey or black or of two equal channels."""
    x = np.random.default_rng(seed).uniform(size=(height, width, 3)).astype(np.float32)
    x[0], x[1, :, 1], x[2, :, 0], x[3, 0] = x[0, :, :1], x[1, :, 0], x[2, :, 2], 0
    return x


def uniform_color(color, height=7, width=11):
    return np.broadcast_to(np.asarray(color, np.float32), (height, width, 3))


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_normalize_standardises_every_channel_by_its_own_mean_and_deviation():
    np.testing.assert_allclose(augment.normalize(jnp.full((2, 2, 1), 0.5), (0.25,), (0.5,)), 0.5)
    normalized = augment.normalize(uniform_color((0.5, 0.5, 0.5)), (0.5, 0.25, 0.0), (1.0, 0.5, 0.125))
    np.testing.assert_allclose(normalized[3, 5], (0.0, 0.5, 4.0))


@pytest.mark.parametrize("operation", COLOR)
def test_a_neutral_factor_gives_the_image(operation):
    np.testing.assert_allclose(COLOR[operation](colors(), NEUTRAL[operation]), colors(), atol=1e-6)


def test_brightness_scales_and_clips():
    np.testing.assert_array_equal(COLOR["brightness"](colors(), 0.0), 0)
    np.testing.assert_allclose(COLOR["brightness"](colors(), 1.5), np.minimum(1.5 * colors(), 1), atol=1e-6)


def test_contrast_0_is_the_mean_luminance_everywhere():
    mean = np.mean(colors() @ np.array([0.2989, 0.587, 0.114]))
    np.testing.assert_allclose(COLOR["contrast"](colors(), 0.0), np.full((7, 11, 3), mean), atol=1e-6)


def test_contrast_moves_every_value_away_from_one_mean():
    middling = 0.4 + 0.2 * colors()
    moved = np.asarray(COLOR["contrast"](middling, 1.5))
    np.testing.assert_allclose(moved - moved[3, 0, 0], 1.5 * (middling - middling[3, 0, 0]), atol=1e-6)


def test_saturation_0_is_grayscale():
    gray = grayscale(colors())
    np.testing.assert_allclose(COLOR["saturation"](colors(), 0.0), gray, atol=1e-6)
    np.testing.assert_allclose(gray[..., 0], colors() @ np.array([0.2989, 0.587, 0.114]), atol=1e-6)


def test_saturation_moves_every_pixel_away_from_its_own_luminance():
    middling = 0.4 + 0.2 * colors()
    luminance = (middling @ np.array([0.2989, 0.587, 0.114]))[..., None]
    expected = luminance + 1.5 * (middling - luminance)
    np.testing.assert_allclose(COLOR["saturation"](middling, 1.5), expected, atol=1e-6)


def test_grayscale_is_idempotent_but_for_the_rounding_of_its_weights():
    gray = grayscale(colors())
    # The weights add to 0.9999.
    np.testing.assert_allclose(grayscale(gray), 0.9999 * gray, atol=1e-6)
    np.testing.assert_array_equal(gray[..., :1], gray[..., 1:2])
    np.testing.assert_array_equal(gray[..., :1], gray[..., 2:])


def test_strong_factors_stay_in_the_unit_range():
    for operation in ("brightness", "contrast", "saturation"):
        strong = COLOR[operation](colors(), 5.0)
        assert strong.min() >= 0, operation
        assert strong.max() == 1, operation
        assert np.asarray(COLOR[operation](uniform_color(RED), 5.0)).max() == 1


def test_a_third_of_the_colour_circle_turns_red_into_green_and_green_into_blue():
    for before, after in ((RED, GREEN), (GREEN, BLUE), (BLUE, RED)):
        np.testing.assert_allclose(COLOR["hue"](uniform_color(before), 1 / 3), uniform_color(after), atol=1e-5)
        np.testing.assert_allclose(COLOR["hue"](uniform_color(after), -1 / 3), uniform_color(before), atol=1e-5)
    np.testing.assert_allclose(COLOR["hue"](uniform_color(RED), 0.5), uniform_color(CYAN), atol=1e-5)


@pytest.mark.parametrize("turn", [-0.5, -0.31, 0.07, 0.5])
def test_hue_is_turned_in_hsv_and_can_be_turned_back(turn):
    def expected(red, green, blue):
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        return colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)

    turned = COLOR["hue"](colors(), turn)
    np.testing.assert_allclose(turned, np.array([[expected(*pixel) for pixel in row] for row in colors()]), atol=1e-5)
    np.testing.assert_allclose(COLOR["hue"](turned, -turn), colors(), atol=1e-5)


def test_jitter_applies_the_operations_in_the_given_order():
    factors = {"brightness": 1.4, "contrast": 0.6, "saturation": 1.9, "hue": 0.2}
    orders = np.array(list(itertools.permutations(range(4))), np.int32)
    values = np.array(list(factors.values()), np.float32)[orders]
    jittered = jit(jax.vmap(augment.jitter_color, in_axes=(None, 0, 0)))(colors(), orders, values)
    for result, order in zip(jittered, orders, strict=True):
        one_after_another = colors()
        for index in order:
            name = augment.COLOR_OPERATIONS[index]
            one_after_another = COLOR[name](one_after_another, factors[name])
        np.testing.assert_allclose(result, one_after_another, atol=1e-5, err_msg=str(order))
    assert np.abs(jittered[0] - jittered[1:]).max(axis=(1, 2, 3)).min() > 0.01


def test_solarize_inverts_from_the_threshold_on():
    x = np.array([0.0, 0.25, 0.5, 0.75, 1.0], np.float32).reshape(1, 5, 1)
    np.testing.assert_array_equal(solarize(x, 0.5).ravel(), [0.0, 0.25, 0.5, 0.25, 0.0])
    np.testing.assert_array_equal(solarize(x, 0.75).ravel(), [0.0, 0.25, 0.5, 0.25, 0.0])
    np.testing.assert_array_equal(solarize(x, 0.8).ravel(), [0.0, 0.25, 0.5, 0.75, 0.0])


def test_solarizing_twice_inverts_back_what_stays_above_the_threshold():
    np.testing.assert_allclose(solarize(solarize(colors(), 0.0), 0.0), colors(), atol=1e-6)
    np.testing.assert_array_equal(solarize(colors(), 1.5), colors())
    # At one half nothing is inverted a second time.
    once = solarize(colors(), 0.5)
    np.testing.assert_allclose(once, np.minimum(colors(), 1 - colors()), atol=1e-6)
    np.testing.assert_array_equal(solarize(once, 0.5), once)


def gaussian(kernel_size, sigma):
    weights = np.exp(-0.5 * np.square((np.arange(kernel_size) - kernel_size // 2) / sigma))
    return weights / weights.sum()


# 13 is the largest kernel for 7 rows. More than 64 pixels are computed in blocks, here 70 as 2·35 and 131 as 3·44 − 1.
@pytest.mark.parametrize(
    ("kernel_size", "sigma", "height", "width"),
    [(1, 0.7, 7, 11), (3, 0.7, 7, 11), (13, 2.5, 7, 11), (23, 2.0, 70, 131), (139, 30.0, 70, 131)],
)
def test_blur_is_the_convolution_of_the_reflected_image_with_a_gaussian(kernel_size, sigma, height, width):
    radius, weights = kernel_size // 2, gaussian(kernel_size, sigma)
    x = colors(height=height, width=width)
    expected = np.pad(x, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    for axis in (0, 1):
        expected = np.apply_along_axis(np.convolve, axis, expected, weights, mode="valid")
    np.testing.assert_allclose(blur(x, sigma, kernel_size=kernel_size), expected, atol=1e-5)


def test_blur_keeps_a_constant_image_and_the_mean_of_what_is_far_from_the_border():
    np.testing.assert_allclose(
        blur(uniform_color((0.2, 0.5, 1.0)), 1.3, kernel_size=3)[4, 4], (0.2, 0.5, 1.0), atol=1e-6
    )
    np.testing.assert_allclose(
        np.ptp(blur(uniform_color((0.2, 0.5, 1.0)), 1.3, kernel_size=3), axis=(0, 1)), 0, atol=1e-6
    )
    inner = np.zeros((7, 11, 3), np.float32)
    inner[2:5, 2:9] = colors()[2:5, 2:9]
    np.testing.assert_allclose(blur(inner, 1.3, kernel_size=3).mean((0, 1)), inner.mean((0, 1)), atol=1e-6)


def test_a_narrow_gaussian_keeps_the_image_and_a_wide_one_is_the_mean_of_its_window():
    np.testing.assert_allclose(blur(colors(), 0.1, kernel_size=3), colors(), atol=1e-6)
    wide = blur(colors(), 1e4, kernel_size=3)
    np.testing.assert_allclose(wide[3, 4], colors()[2:5, 3:6].mean((0, 1)), atol=1e-5)


@pytest.mark.parametrize("kernel_size", [2, 4, 15, 0])
def test_kernels_that_are_even_or_too_large_are_refused(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size: must be odd and at most 13 for this image, got {kernel_size}"):
        augment.gaussian_blur(colors(), 1.0, kernel_size=kernel_size)


SHAPE = (13, 17)
# Top, left, height and width; enlarged and shrunk to 8 pixels along either axis.
BOXES = [(0, 0, 13, 17), (2, 3, 5, 6), (4, 1, 9, 4), (1, 9, 3, 8), (12, 16, 1, 1), (5, 0, 8, 17), (0, 7, 13, 1)]


@pytest.mark.parametrize(("top", "left"), [(0, 0), (2, 7), (5, 9)])
def test_a_box_of_the_size_of_the_output_is_cut_out_as_it_is(top, left):
    x = pixels(*SHAPE)
    np.testing.assert_array_equal(crop(x, top, left, 8, 8, size=8), x[top : top + 8, left : left + 8])


def test_the_whole_image_at_its_own_size_is_the_image():
    x = pixels(9, 9)
    np.testing.assert_array_equal(crop(x, 0, 0, 9, 9, size=9), x)


@pytest.mark.parametrize("box", BOXES)
def test_no_pixel_outside_the_box_has_an_influence(box):
    top, left, height, width = box
    x = pixels(*SHAPE).astype(np.float32)
    other = np.full_like(x, 1e9)
    other[top : top + height, left : left + width] = x[top : top + height, left : left + width]
    np.testing.assert_array_equal(crop(other, *box, size=8), crop(x, *box, size=8))


@pytest.mark.parametrize("box", BOXES)
def test_every_pixel_of_the_box_has_an_influence(box):
    top, left, height, width = box

    def change(row, column):
        impulse = np.zeros((*SHAPE, 3), np.float32)
        impulse[row, column] = 1
        return crop(impulse, *box, size=8).sum()

    # Every output has weights of sum one, so that the influences of all pixels add to the number of outputs.
    influences = [change(top + i, left + j) for i in range(height) for j in range(width)]
    assert min(influences) > 0.01
    np.testing.assert_allclose(sum(influences), 3 * 8 * 8, rtol=1e-5)


@pytest.mark.parametrize("box", BOXES)
def test_cropping_commutes_with_flips_and_transposition(box):
    top, left, height, width = box
    x = pixels(*SHAPE)
    expected = crop(x, *box, size=8)
    mirrored = crop(x[:, ::-1], top, SHAPE[1] - left - width, height, width, size=8)
    np.testing.assert_allclose(mirrored[:, ::-1], expected, atol=1e-3)
    upside_down = crop(x[::-1], SHAPE[0] - top - height, left, height, width, size=8)
    np.testing.assert_allclose(upside_down[::-1], expected, atol=1e-3)
    transposed = crop(x.transpose(1, 0, 2), left, top, width, height, size=8)
    np.testing.assert_allclose(transposed.transpose(1, 0, 2), expected, atol=1e-3)


@pytest.mark.parametrize("box", BOXES)
def test_resampling_a_ramp_keeps_its_mean(box):
    top, left, height, width = box
    rows, columns = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    ramp = np.stack([rows, columns, 2.0 * rows - columns], axis=-1).astype(np.float32)
    resampled = np.asarray(crop(ramp, *box, size=8))
    part = ramp[top : top + height, left : left + width]
    np.testing.assert_allclose(resampled.mean((0, 1)), part.mean((0, 1)), atol=1e-4)


def test_shrinking_by_whole_numbers_and_enlarging_are_exact_on_a_ramp_far_from_the_border():
    rows, columns = np.meshgrid(np.arange(24), np.arange(32), indexing="ij")
    ramp = np.stack([rows, columns, 2.0 * rows - columns], axis=-1).astype(np.float32)
    for box, inside in (((0, 0, 24, 32), slice(1, -1)), ((3, 5, 4, 2), slice(2, -2))):
        top, left, height, width = box
        y, x = ((np.arange(8) + 0.5) * length / 8 - 0.5 for length in (height, width))
        y, x = np.meshgrid(top + y[inside], left + x[inside], indexing="ij")
        resampled = crop(ramp, *box, size=8)[inside, inside]
        np.testing.assert_allclose(resampled, np.stack([y, x, 2 * y - x], axis=-1), atol=1e-4)


def test_a_box_of_one_pixel_gives_a_constant():
    x = pixels(*SHAPE)
    for top, left in ((0, 0), (12, 16), (4, 9)):
        expected = np.broadcast_to(x[top, left], (8, 8, 3))
        np.testing.assert_allclose(crop(x, top, left, 1, 1, size=8), expected, rtol=1e-6)


def dense_crop(x, top, left, height, width, size):
    """The crop as a product with matrices that have a column for every row or column of the box."""
    box = x[top : top + height, left : left + width].astype(np.float64)
    for axis, length in enumerate((height, width)):
        scale = length / size
        distances = (np.arange(size)[:, None] + 0.5) * scale - (np.arange(length) + 0.5)
        weights = np.maximum(0, 1 - np.abs(distances) / max(scale, 1))
        box = np.moveaxis(np.tensordot(weights / weights.sum(1, keepdims=True), box, (1, axis)), 0, axis)
    return box


# More than 64 pixels are computed in blocks, here 70 as 2·35 and 131 as 3·44 − 1.
@pytest.mark.parametrize(("shape", "size"), [(SHAPE, 8), ((90, 500), 70), ((90, 500), 131)])
def test_a_crop_is_the_product_with_the_weights_of_all_pixels_of_the_box(shape, size):
    x = pixels(*shape)
    rng = np.random.default_rng(0)
    boxes = [(0, 0, *shape), (0, shape[1] - 1, shape[0], 1), (shape[0] - 1, 0, 1, shape[1])]
    for _ in range(8):
        height, width = rng.integers(1, np.add(shape, 1))
        boxes.append((rng.integers(shape[0] - height + 1), rng.integers(shape[1] - width + 1), height, width))
    for box in boxes:
        # In units of 255.
        np.testing.assert_allclose(crop(x, *box, size=size), dense_crop(x, *box, size), atol=1e-2, err_msg=str(box))


def test_uint8_and_float_images_give_the_same_crop():
    x = pixels(*SHAPE)
    for box in BOXES:
        from_uint8, from_float = crop(x, *box, size=8), crop(x.astype(np.float32), *box, size=8)
        assert from_uint8.dtype == from_float.dtype == jnp.float32
        np.testing.assert_array_equal(from_uint8, from_float)


SMALL = jax.ShapeDtypeStruct((7, 11, 3), jnp.float32)
SCALAR, INTEGER = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.uint8])
def test_crops_are_computed_in_single_precision_where_double_is_allowed(dtype, double_precision):
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct((7, 11, 3), dtype)
        found = jax.make_jaxpr(partial(augment.resized_crop, size=8))(x, *[INTEGER] * 4)
    assert {out.dtype for out in found.out_avals} == {jnp.dtype("float32")}
    assert not double_precision(found.jaxpr)


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (lambda x: augment.normalize(x, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)), ()),
        (augment.adjust_brightness, (SCALAR,)),
        (augment.adjust_contrast, (SCALAR,)),
        (augment.adjust_saturation, (SCALAR,)),
        (augment.adjust_hue, (SCALAR,)),
        (augment.to_grayscale, ()),
        (
            augment.jitter_color,
            (jax.ShapeDtypeStruct((4,), jnp.int32), jax.ShapeDtypeStruct((4,), jnp.float32)),
        ),
        (augment.solarize, (SCALAR,)),
        (partial(augment.gaussian_blur, kernel_size=3), (SCALAR,)),
        (partial(augment.resized_crop, top=0, left=1, height=5, width=6, size=8), ()),
    ],
)
def test_operations_are_computed_in_single_precision_where_double_is_allowed(operation, shapes, double_precision):
    with jax.enable_x64(True):
        found = jax.make_jaxpr(operation)(SMALL, *shapes)
    assert {out.dtype for out in found.out_avals} == {jnp.dtype("float32")}
    assert not double_precision(found.jaxpr)


def test_products_of_blur_and_crop_are_in_full_precision_on_every_accelerator(equations):
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    for operation, arguments in (
        (partial(augment.gaussian_blur, kernel_size=3), (SCALAR,)),
        (partial(augment.resized_crop, size=8), [INTEGER] * 4),
    ):
        found = equations(jax.make_jaxpr(operation)(SMALL, *arguments).jaxpr)
        products = [e.params["precision"] for e in found if e.primitive.name == "dot_general"]
        assert products
        assert set(products) == {highest}
