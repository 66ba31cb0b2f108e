import contextlib
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from hamjepa_jax.data import images
from hamjepa_jax.data.images import (
    UnreadableImage,
    decode,
    fit_canvas,
    resize_shorter_side,
    resized_crop,
    shorter_side_crop,
)

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height, width, channels=3):
    """A picture without detail, so that every way to decode or resize it is nearly the same."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return np.stack([255 * y, 255 * x, 255 * (1 - y)][:channels], axis=-1).round().astype(np.uint8)


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


def png(width, height, *chunks):
    """A PNG file with these chunks between the header and the end."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_give_back_their_pixels(kind):
    pixels = noise(5, 7)
    decoded = decode(encode(Image.fromarray(pixels), kind))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_give_nearly_their_pixels(kind):
    pixels = smooth(64, 96)
    np.testing.assert_allclose(decode(encode(Image.fromarray(pixels), kind)).astype(int), pixels, atol=12)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_becomes_three_equal_channels(kind):
    pixels = smooth(16, 16, channels=1)
    decoded = decode(encode(Image.fromarray(pixels[..., 0]), kind))
    assert decoded.shape == (16, 16, 3)
    np.testing.assert_allclose(decoded.astype(int), np.repeat(pixels, 3, axis=-1).astype(int), atol=4)


def test_one_bit_becomes_black_and_white():
    pixels = np.array([[True, False], [False, False]])
    np.testing.assert_array_equal(decode(encode(Image.fromarray(pixels)))[..., 1], [[255, 0], [0, 0]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    values = np.array([[0, 257, 300 * 100], [128, 129, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(values), kind))[..., 2], expected)


def test_a_32_bit_file_of_16_bit_values_is_scaled_too():
    values = np.array([[0, 65535, 25700]], np.int32)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(values), "TIFF"))[0, :, 0], [0, 255, 100])


def test_transparent_pixels_are_laid_over_white():
    rgba = np.array([[(*RED, 255), (*RED, 0), (0, 0, 0, 128)]], np.uint8)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(rgba))), [[RED, WHITE, (127, 127, 127)]])
    grey = Image.fromarray(np.array([[(10, 255), (10, 0)]], np.uint8), "LA")
    np.testing.assert_array_equal(decode(encode(grey)), [[(10, 10, 10), WHITE]])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes_are_looked_up_and_their_transparent_colour_is_white(kind):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    np.testing.assert_array_equal(decode(encode(image, kind)), [[RED, GREEN]])
    np.testing.assert_array_equal(decode(encode(image, kind, transparency=1)), [[RED, WHITE]])


def test_the_transparent_colour_of_an_rgb_file_is_white():
    image = Image.fromarray(np.array([[RED, GREEN]], np.uint8))
    np.testing.assert_array_equal(decode(encode(image, transparency=GREEN)), [[RED, WHITE]])


def test_cmyk_is_converted():
    pixels = smooth(16, 16)
    decoded = decode(encode(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(decoded.astype(int), pixels, atol=12)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if kind == "WEBP" else {}
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode(encoded), np.full((8, 8, 3), RED))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_the_exif_orientation_is_applied(kind, value):
    upright = smooth(48, 80)
    # How the camera stores the picture, for each orientation (EXIF 2.3, section 4.6.4).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[value]
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = value
    decoded = decode(encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif))
    assert decoded.shape == upright.shape
    np.testing.assert_allclose(decoded.astype(int), upright, atol=16)


@pytest.mark.parametrize(
    ("kind", "data"), [("JPEG", b"MM\0*\0\0\0\x08\0\xffgarbage"), ("PNG", b"this is no TIFF header at all")]
)
def test_broken_exif_data_does_not_make_an_image_unreadable_or_print_anything(kind, data, tmp_path):
    file = tmp_path / "odd.jpg"
    exif = b"Exif\0\0" + data
    file.write_bytes(encode(Image.fromarray(smooth(16, 32)), kind, exif=exif))
    program = f"from hamjepa_jax.data.images import decode; print(decode(open({str(file)!r}, 'rb').read()).shape)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (finished.stdout, finished.stderr) == ("(16, 32, 3)\n", "")


def test_a_jpeg_may_be_decoded_smaller_but_never_below_the_side_asked_for():
    encoded = encode(Image.fromarray(smooth(256, 400)), "JPEG", quality=95)
    assert decode(encoded).shape == (256, 400, 3)
    for shorter, shape in ((256, (256, 400)), (129, (256, 400)), (128, (128, 200)), (40, (64, 100)), (1, (32, 50))):
        decoded = decode(encoded, min_shorter_side=shorter)
        assert decoded.shape == (*shape, 3)
        np.testing.assert_allclose(decoded.astype(int), smooth(*shape), atol=8)
    png_file = encode(Image.fromarray(smooth(256, 400)))
    assert decode(png_file, min_shorter_side=1).shape == (256, 400, 3)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not an image of a known format"),
        (encode(Image.fromarray(noise(64, 64)), "JPEG")[:1500], "truncated"),
        (encode(Image.fromarray(noise(64, 64)))[:-2000], "truncated"),
        (encode(Image.fromarray(noise(9, 9)), "GIF")[:90], ""),
        (encode(Image.fromarray(noise(9, 9)), "TIFF")[:300], ""),
        (png(3, 3, (b"IDAT", b"not deflated")), "broken data stream"),
        (png(3, 3, (b"IDA", b"")), ""),
        (png(60_000, 60_000), "decompression bomb"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (encode(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), "floating-point"),
    ],
    ids=range(11),
)
def test_what_cannot_be_decoded_is_unreadable_for_a_reason_of_one_short_line(encoded, reason):
    with pytest.raises(UnreadableImage) as caught:
        decode(encoded)
    message = str(caught.value)
    assert reason in message
    assert 0 < len(message) < 200
    assert "\n" not in message
    assert "0x" not in message


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_damaged_bytes_are_decoded_or_unreadable_and_nothing_else(kind):
    random = np.random.default_rng(0)
    encoded = np.frombuffer(encode(Image.fromarray(noise(12, 12)), kind), np.uint8)
    for _ in range(150):
        damaged = encoded[: random.integers(1, len(encoded) + 1)].copy()
        places = random.integers(0, min(len(damaged), 120), 4)
        damaged[places] = random.integers(0, 256, 4)
        with contextlib.suppress(UnreadableImage):
            assert decode(damaged.tobytes()).shape[2] == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_that_fits_is_put_on_the_canvas_as_it_is(channels):
    image = noise(5, 8, channels)
    for side in (8, 20):
        canvas, size = fit_canvas(image, side)
        assert (canvas.shape, canvas.dtype, size) == ((side, side, channels), np.uint8, (5, 8))
        np.testing.assert_array_equal(canvas[:5, :8], image)
        assert canvas.sum() == image.sum()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(64, 32), (30, 90), (1, 200)])
def test_a_larger_image_is_shrunk_to_the_canvas_in_proportion(shape, channels):
    image = np.maximum(smooth(*shape, channels), 1)
    canvas, (height, width) = fit_canvas(image, 16)
    assert max(height, width) == 16
    scale = 16 / max(shape)
    assert height == max(1, round(shape[0] * scale))
    assert width == max(1, round(shape[1] * scale))
    np.testing.assert_allclose(canvas[:height, :width].astype(int), smooth(height, width, channels), atol=10)
    assert not canvas[height:].any()
    assert not canvas[:, width:].any()


def test_shrinking_averages_over_what_it_leaves_out():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None]
    for shrunk in (fit_canvas(stripes, 8)[0], resized_crop(stripes, (0, 0, 64, 64), 8)):
        assert np.abs(shrunk.astype(int) - 127).max() <= 12
    assert np.abs(shorter_side_crop(stripes, size=8, resize=8).astype(int) - 127).max() <= 12


def test_the_evaluation_crop_is_the_centre_rounded_as_in_torchvision():
    image = noise(10, 15)
    # (10 - 7) / 2 = 1.5 rounds to 2 and (15 - 7) / 2 = 4 is exact; Python rounds halves to even, as torchvision does.
    np.testing.assert_array_equal(shorter_side_crop(image, size=7, resize=10), image[2:9, 4:11])
    # (10 - 5) / 2 = 2.5 rounds to 2.
    np.testing.assert_array_equal(shorter_side_crop(image, size=5, resize=10), image[2:7, 5:10])


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (20, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_evaluation_crop_resizes_the_shorter_side(shape, channels):
    resized = (32, int(32 * max(shape) / min(shape)))
    resized = resized if shape[0] < shape[1] else resized[::-1]
    top, left = (round((side - 24) / 2) for side in resized)
    crop = shorter_side_crop(smooth(*shape, channels), size=24, resize=32)
    assert (crop.shape, crop.dtype) == ((24, 24, channels), np.uint8)
    expected = smooth(*resized, channels)[top : top + 24, left : left + 24]
    np.testing.assert_allclose(crop.astype(int), expected, atol=5)
    assert resize_shorter_side(smooth(*shape, channels), 32, enlarge=True).shape == (*resized, channels)
    with pytest.raises(ValueError, match="resize: must be at least the size of the cut, 24, got 20"):
        shorter_side_crop(smooth(*shape), size=24, resize=20)


def test_nothing_outside_the_box_shows_in_the_crop():
    image = noise(40, 40)
    other = noise(40, 40, seed=1)
    other[5:25, 10:20] = image[5:25, 10:20]
    for size in (4, 20, 50):
        crop = resized_crop(image, (5, 10, 20, 10), size)
        assert (crop.shape, crop.dtype) == ((size, size, 3), np.uint8)
        np.testing.assert_array_equal(crop, resized_crop(other, (5, 10, 20, 10), size))
    np.testing.assert_array_equal(resized_crop(image, (3, 4, 8, 8), 8), image[3:11, 4:12])
    assert resized_crop(image[..., :1], (3, 4, 8, 6), 5).shape == (5, 5, 1)


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, -1, 4, 4), (0, 7, 4, 4), (7, 0, 4, 4), (0, 0, 0, 4), (0, 0, 4, 0)])
def test_a_box_that_is_empty_or_reaches_beyond_the_image_is_refused(box):
    with pytest.raises(ValueError, match="box: must lie within the image of 10×10 pixels"):
        resized_crop(noise(10, 10), box, 8)
