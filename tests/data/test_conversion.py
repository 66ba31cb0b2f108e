import io

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from hamjepa_jax.data.conversion import convert, in_fixed_order
from hamjepa_jax.data.images import EXIF_ORIENTATION, UnreadableImage, decode


def picture(height, width):
    """Little detail, so that JPEG changes little; and no symmetry, so that it matters which way is up."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encode(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(value):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = value
    return exif


def sixteen_bit_rgb():
    """An RGB PNG file of 16 bits a channel, which Pillow reads but does not write: the header and rows by hand."""
    import struct
    import zlib

    rows = np.asarray(picture(12, 20)).astype(">u2") * 257
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 20, 12, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


KEPT = {
    "small.jpg": encode(picture(12, 20)),
    "small.png": encode(picture(20, 12), "PNG"),
    "smaller.jpg": encode(picture(5, 40)),
    "upright.jpg": encode(picture(12, 20), exif=with_orientation(1)),
    "progressive.jpg": encode(picture(12, 20), progressive=True),
}
CHANGED = {
    "grey.jpg": encode(picture(12, 20).convert("L")),
    "cmyk.jpg": encode(picture(12, 20).convert("CMYK")),
    "turned.jpg": encode(picture(20, 12), exif=with_orientation(6)),
    "turned.png": encode(picture(12, 20), "PNG", exif=with_orientation(3)),
    "palette.png": encode(picture(12, 20).quantize(200), "PNG"),
    "alpha.png": encode(picture(12, 20).convert("RGBA"), "PNG"),
    "hole.png": encode(picture(12, 20), "PNG", transparency=(0, 0, 0)),
    "moving.png": encode(picture(12, 20), "PNG", save_all=True, append_images=[picture(12, 20).rotate(180)]),
    "deep.png": sixteen_bit_rgb(),
    "other.webp": encode(picture(12, 20), "WEBP"),
    "other.bmp": encode(picture(12, 20), "BMP"),
}


@pytest.mark.parametrize("name", KEPT)
def test_small_upright_rgb_files_keep_their_bytes(name):
    assert convert(KEPT[name], 12) == KEPT[name]


@pytest.mark.parametrize("name", CHANGED)
def test_other_files_become_rgb_jpeg_that_looks_the_same(name):
    with Image.open(io.BytesIO(convert(CHANGED[name], 12))) as image:
        assert (image.format, image.mode, image.size, dict(image.getexif())) == ("JPEG", "RGB", (20, 12), {})
        difference = np.asarray(image).astype(int) - decode(CHANGED[name])
    assert np.abs(difference).mean() < 6


@pytest.mark.parametrize(("shape", "shrunk"), [((40, 24), (20, 12)), ((24, 49), (12, 24)), ((13, 12), (13, 12))])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_larger_images_are_shrunk_to_the_shorter_side(shape, shrunk, kind):
    pixels = decode(convert(encode(picture(*shape), kind, quality=95), 12))
    assert pixels.shape == (*shrunk, 3)
    difference = pixels.astype(int) - np.asarray(picture(*shrunk))
    assert np.abs(difference).mean() < 10


def test_images_keep_their_size_unless_it_is_limited():
    large = encode(picture(600, 700))
    assert convert(large, None) == large
    assert decode(convert(encode(picture(600, 700).convert("CMYK")), None)).shape == (600, 700, 3)


def test_a_broken_image_is_not_converted():
    with pytest.raises(UnreadableImage):
        convert(KEPT["small.jpg"][:-200], 12)


def test_the_features_of_a_record_are_in_the_order_of_their_names():
    example, names = tf_example_pb2.Example(), ["zebra", "label", "image", "file_name", "cat", "box", "anchor", "yak"]
    for name in names:
        example.features.feature[name].int64_list.value.append(len(name))
    ordered = in_fixed_order(example.SerializeToString())
    assert sorted(names, key=lambda name: ordered.index(name.encode())) == sorted(names)
    assert tf_example_pb2.Example.FromString(ordered) == example
