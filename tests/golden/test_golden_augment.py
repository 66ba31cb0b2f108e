import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax import build_views
from hamjepa_jax.data import augment, views

# Compiling takes most of the time here, and the less is optimised, the less it takes.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Largest absolute errors of values in [0, 1]; the file holds float32 numbers that were computed in float64.
TOLERANCE = {"float64": 1e-5, "float32": 1e-4}
CHAIN_TOLERANCE = {"float64": 1e-5, "float32": 2e-4}
IMAGES = range(4)
THRESHOLD = 128 / 255
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CHAIN_BOX, CHAIN_SIZE = (2, 3, 28, 31), 32
OPERATIONS = ("contrast", "hue", "brightness", "saturation")
FACTORS = (0.8, 0.06, 1.2, 0.9)
KERNEL_SIZE, SIGMA = 3, 1.1


def resized_crop(image, top, left, height, width, size):
    return augment.resized_crop(image, int(top), int(left), int(height), int(width), size=int(size))


def chain(image):
    image = augment.resized_crop(image, *CHAIN_BOX, size=CHAIN_SIZE)[:, ::-1]
    for operation, factor in zip(OPERATIONS, FACTORS, strict=True):
        image = OPERATION_OF_KEY[operation](image, factor)
    return augment.solarize(augment.gaussian_blur(image, SIGMA, kernel_size=KERNEL_SIZE), THRESHOLD)


# A key of the file is one of these names and the parameters, which are numbers, joined by underscores.
OPERATION_OF_KEY = {
    "brightness": augment.adjust_brightness,
    "contrast": augment.adjust_contrast,
    "saturation": augment.adjust_saturation,
    "hue": augment.adjust_hue,
    "grayscale": augment.to_grayscale,
    "solarize": lambda image: augment.solarize(image, THRESHOLD),
    "hflip": lambda image: image[:, ::-1],
    "blur": lambda image, kernel_size, sigma: augment.gaussian_blur(image, sigma, kernel_size=int(kernel_size)),
    "resized_crop": resized_crop,
    "normalize_cifar": lambda image: augment.normalize(image, CIFAR_MEAN, CIFAR_STD),
    "chain": chain,
}


def parse(key):
    """The name of the operation, its parameters, and the number of the image."""
    name = max((name for name in OPERATION_OF_KEY if key.startswith(name)), key=len)
    *parameters, image_number = key.removeprefix(f"{name}_").split("_")
    return name, tuple(map(float, parameters)), int(image_number)


def keys_of(numbers, image_number):
    return tuple(key for key in numbers if not key.startswith("image") and parse(key)[2] == image_number)


@partial(jit, static_argnames="cases")
def compute(image, cases):
    return [OPERATION_OF_KEY[name](image, *parameters) for name, parameters in cases]


@jit
def crop_at(image, boxes_of_sizes):
    """The crops of each size, of boxes that are traced."""

    def crop(box, size):
        return augment.resized_crop(image, *box, size=size)

    return {size: jax.vmap(partial(crop, size=size))(boxes) for size, boxes in boxes_of_sizes.items()}


def crops(numbers, image_number, dtype):
    """The keys and the results of the crops of the file, and the crop of the chain."""
    keys = [key for key in keys_of(numbers, image_number) if key.startswith("resized_crop")]
    keys_of_sizes = {size: [key for key in keys if parse(key)[1][-1] == size] for size in (12, CHAIN_SIZE)}
    boxes = {size: [parse(key)[1][:4] for key in of_size] for size, of_size in keys_of_sizes.items()}
    boxes[CHAIN_SIZE].append(CHAIN_BOX)
    results = crop_at(
        unit_range(numbers, image_number, dtype), {size: jnp.asarray(box, jnp.int32) for size, box in boxes.items()}
    )
    of_file = {key: result for size in boxes for key, result in zip(keys_of_sizes[size], results[size], strict=False)}
    assert of_file.keys() == set(keys)
    return of_file, results[CHAIN_SIZE][-1]


def unit_range(numbers, image_number, dtype):
    return jnp.asarray(numbers[f"image_{image_number}"] / 255.0, dtype)


def assert_close(actual, expected, tolerance, name):
    assert actual.shape == expected.shape, name
    error = np.max(np.abs(np.asarray(actual, np.float64) - expected))
    assert error <= tolerance, f"{name}: error {error:.3g}"


@pytest.mark.parametrize("image_number", IMAGES)
def test_every_operation(golden, precision, image_number):
    numbers = golden("augment")
    keys = keys_of(numbers, image_number)
    results = compute(unit_range(numbers, image_number, precision.dtype), tuple(parse(key)[:2] for key in keys))
    for key, result in zip(keys, results, strict=True):
        assert result.dtype == precision.dtype, key
        tolerance = (CHAIN_TOLERANCE if parse(key)[0] == "chain" else TOLERANCE)[precision.dtype]
        assert_close(result, numbers[key], tolerance, key)


def test_the_cases_are_all_numbers_of_the_file_and_every_operation_has_some(golden):
    numbers = golden("augment")
    images = {f"image_{i}" for i in IMAGES}
    assert images | {key for i in IMAGES for key in keys_of(numbers, i)} == numbers.keys()
    for i in IMAGES:
        assert {parse(key)[0] for key in keys_of(numbers, i)} == OPERATION_OF_KEY.keys()
        assert len(keys_of(numbers, i)) == 23


@pytest.mark.parametrize("image_number", IMAGES)
def test_resized_crop_at_traced_positions(golden, precision, image_number):
    numbers = golden("augment")
    results, _ = crops(numbers, image_number, precision.dtype)
    assert len(results) == 4
    for key, result in results.items():
        assert result.dtype == precision.dtype, key
        assert_close(result, numbers[key], TOLERANCE[precision.dtype], key)


def chain_parameters(dtype):
    """The parameters of a view that is the chain."""
    operations = [augment.COLOR_OPERATIONS.index(operation) for operation in OPERATIONS]
    return views.CroppedView(
        views.CropBox(*(jnp.int32(value) for value in CHAIN_BOX)),
        views.Appearance(
            flip=jnp.asarray(True),
            operations=jnp.asarray(operations, jnp.int32),
            factors=jnp.asarray(FACTORS, dtype),
            grayscale=jnp.asarray(False),
            blur_sigma=jnp.asarray(SIGMA, dtype),
            solarize=jnp.asarray(True),
        ),
    )


@jit
def finish_chain(cropped, appearance):
    return views.apply_appearance(cropped, appearance, blur_kernel_size=KERNEL_SIZE, solarize_threshold=THRESHOLD)


@pytest.mark.parametrize("image_number", IMAGES)
def test_the_chain_as_the_appearance_of_a_view(golden, precision, image_number):
    numbers = golden("augment")
    _, cropped = crops(numbers, image_number, precision.dtype)
    view = finish_chain(cropped, chain_parameters(precision.dtype).appearance)
    assert view.dtype == precision.dtype
    assert_close(view, numbers[f"chain_{image_number}"], CHAIN_TOLERANCE[precision.dtype], "chain")


@pytest.fixture(scope="module")
def render():
    """Renders a view of 32 pixels of a uint8 image, with the blur and the threshold published for CIFAR."""
    config = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "cifar100.py"))["get_config"]().data
    config.view_size = CHAIN_SIZE
    (group,) = build_views.view_groups(config)
    # Compiled as it is in training.
    return jax.jit(group.render)


@pytest.mark.parametrize("image_number", IMAGES)
def test_the_chain_as_a_view_of_a_uint8_image(golden, render, image_number):
    numbers = golden("augment")
    image = jnp.asarray(numbers[f"image_{image_number}"])
    assert image.dtype == jnp.uint8
    view = render(image, chain_parameters("float32"))
    assert view.dtype == jnp.float32
    assert_close(view, numbers[f"chain_{image_number}"], CHAIN_TOLERANCE["float32"], "chain")
