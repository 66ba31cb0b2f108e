"""Images on the host: decoding files of any kind to RGB, and cutting and resizing arrays, all with Pillow."""

import io
import warnings

import numpy as np
from PIL import Image

# Pillow tries these and nothing else; its other readers include one that starts an external program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
EXIF_ORIENTATION = 0x0112
TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
REASON_LENGTH = 160

# What Pillow warns of (odd EXIF data, large images) names no file, and would be printed in the middle of a run.
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


class UnreadableImage(ValueError):
    """An image that cannot be decoded; the message is the reason, one short line."""


def decode(encoded: bytes, min_shorter_side: int | None = None) -> np.ndarray:
    """Decodes an image file to RGB.

    Grey, palette and CMYK images are converted, 16-bit grey values are scaled to 8 bits, transparent pixels are laid
    over white, the first frame of an animation is taken, and the EXIF orientation is applied.

    Args:
        encoded: the bytes of a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file.
        min_shorter_side: allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size, which is several times faster,
            as long as the shorter side keeps this many pixels; None: at its full size.

    Returns:
        uint8 (H, W, 3), read-only.

    Raises:
        UnreadableImage: if the bytes are no image, are truncated or are broken.
    """
    if not encoded:
        raise UnreadableImage("the file is empty")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if min_shorter_side is not None:
                image.draft("RGB", (min_shorter_side, min_shorter_side))
            image.load()
            pixels = np.asarray(_rgb(_upright(image)))
    except Image.UnidentifiedImageError:
        raise UnreadableImage(f"not an image of a known format ({', '.join(FORMATS)})") from None
    # Broken files make Pillow raise almost anything: SyntaxError, struct.error, IndexError, zlib.error ...
    except Exception as error:
        reason = " ".join(f"{error}".split())[:REASON_LENGTH]
        raise UnreadableImage(reason or type(error).__name__) from error
    return pixels


def from_pillow(image: Image.Image) -> np.ndarray:
    """A Pillow image as RGB, converted as `decode` does.

    Args:
        image: the image, of any mode.

    Returns:
        uint8 (H, W, 3).

    Raises:
        UnreadableImage: for floating-point pixels.
    """
    return np.asarray(_rgb(_upright(image)))


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """An image with as many channels as an encoder takes.

    Args:
        image: uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        channels: 1 or 3. Grey values are repeated; colours become the luma of ITU-R 601; what is transparent lies over
            white.

    Returns:
        uint8 (H, W, channels).

    Raises:
        ValueError: for another number of channels.
    """
    image = image[..., None] if image.ndim == 2 else image
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1:
        return np.repeat(image, channels, axis=2)
    if image.shape[2] not in (3, 4):
        raise ValueError(f"must have 1, 3 or 4 channels, got {image.shape[2]}")
    colours = _rgb(Image.fromarray(image))
    return np.asarray(colours) if channels == 3 else np.asarray(colours.convert("L"))[..., None]


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1…8; 1, which is upright, where it is missing or cannot be read."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    # Broken metadata of any kind; the pixels are fine.
    except Exception:
        return 1
    return value if value in TURN_UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    turn = TURN_UPRIGHT.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB."""
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range is unknown")
    if image.mode in SIXTEEN_BIT:
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def fit_canvas(image: np.ndarray, canvas_size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Puts an image on a square canvas, shrunk if it is too large (bilinear, antialiased), never enlarged.

    Args:
        image: uint8 (H, W, C), 1 or 3 channels.
        canvas_size: side of the canvas, pixels.

    Returns:
        The canvas, uint8 (canvas_size, canvas_size, C), the image at its top left and zeros at the bottom and right;
        and height and width of the image on it.
    """
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer > canvas_size:
        height, width = (max(1, round(side * canvas_size / longer)) for side in (height, width))
        image = resize_to(image, height, width)
    canvas = np.zeros((canvas_size, canvas_size, image.shape[2]), np.uint8)
    canvas[:height, :width] = image
    return canvas, (height, width)


def shorter_side_crop(image: np.ndarray, *, size: int, resize: int) -> np.ndarray:
    """The usual view for evaluation: the shorter side is resized, then the centre is cut out.

    Sizes and offsets are rounded as torchvision's `Resize` and `CenterCrop` do.

    Args:
        image: uint8 (H, W, C), 1 or 3 channels.
        size: side of the cut, pixels.
        resize: the shorter side before the cut, pixels; at least `size`.

    Returns:
        uint8 (size, size, C).

    Raises:
        ValueError: if `resize` is smaller than `size`.
    """
    if resize < size:
        raise ValueError(f"resize: must be at least the size of the cut, {size}, got {resize}")
    image = resize_shorter_side(image, resize, enlarge=True)
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def resize_shorter_side(image: np.ndarray, shorter_side: int, *, enlarge: bool = False) -> np.ndarray:
    """Resizes an image so that its shorter side has a given length; the aspect ratio stays.

    Args:
        image: uint8 (H, W, C), 1 or 3 channels.
        shorter_side: the length, pixels.
        enlarge: whether an image that is smaller is enlarged; else it is returned as it is.

    Returns:
        uint8 (H', W', C).
    """
    shorter, longer = sorted(image.shape[:2])
    if shorter == shorter_side or (shorter < shorter_side and not enlarge):
        return image
    new_longer = int(shorter_side * longer / shorter)
    height, width = (shorter_side, new_longer) if image.shape[0] == shorter else (new_longer, shorter_side)
    return resize_to(image, height, width)


def resized_crop(image: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Cuts a box out of an image and resizes it to a square; no pixel outside the box has an influence.

    Args:
        image: uint8 (H, W, C), 1 or 3 channels.
        box: top, left, height and width, pixels; within the image.
        size: side of the square, pixels.

    Returns:
        uint8 (size, size, C).

    Raises:
        ValueError: if the box is empty or reaches beyond the image.
    """
    top, left, height, width = box
    inside = top >= 0 and left >= 0 and top + height <= image.shape[0] and left + width <= image.shape[1]
    if not inside or height < 1 or width < 1:
        raise ValueError(f"box: must lie within the image of {image.shape[0]}×{image.shape[1]} pixels, got {box}")
    return resize_to(image[top : top + height, left : left + width], size, size)


def resize_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image: bilinear, antialiased where it shrinks.

    Args:
        image: uint8 (H, W, C), 1 or 3 channels.
        height: new height, pixels.
        width: new width, pixels.

    Returns:
        uint8 (height, width, C).
    """
    if image.shape[:2] == (height, width):
        return image
    # Pillow knows one channel only as a two-dimensional array.
    pixels = image[..., 0] if image.shape[2] == 1 else image
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    return resized[..., None] if image.shape[2] == 1 else resized
