"""Pictures inside the page: the contact sheet of views, and test images beside their nearest neighbours."""

import base64
import io
from typing import Any

import numpy as np

from hamjepa_jax.errors import UserError, reason_of
from hamjepa_jax.report.elements import Html, element
from hamjepa_jax.report.figures_maps import class_name
from hamjepa_jax.report.reading import Run

# Bytes above which a picture is stored with losses.
LARGEST_PNG = 4_000
LARGEST_SHEET = 300_000
SHARP_BELOW = 33
# Query sheets of each run that are shown at once when runs are beside each other.
FEW_QUERIES = 4


def contact_sheet(run: Run) -> Html | None:
    """The sheet of views, or None where there is none.

    Args:
        run: the run.

    Returns:
        A figure.

    Raises:
        UserError: if it is no picture.
    """
    from PIL import Image

    if run.views is None:
        return None
    try:
        with Image.open(run.views) as picture:
            picture.load()
            source, (width, height) = _uri(picture.convert("RGB"), LARGEST_SHEET), picture.size
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{run.views}: cannot be read ({reason_of(error)})") from None
    alt = f"Training images of {run.label}, each followed by the views drawn from it"
    image = element("img", src=source, alt=alt, width=width, height=height, class_="sheet")
    caption = (
        "What the encoder saw: training images, each followed by its views of the first step. Boxes show what was cut "
        "out, and the lines under a view say how it was changed."
    )
    box = {"class_": "scroll", "role": "region", "aria_label": f"views of {run.label}", "tabindex": 0}
    return element("figure", element("div", image, **box), element("figcaption", caption), class_="panel wide")


def neighbour_sheets(run: Run, *, folded: bool) -> Html | None:
    """Test images beside their nearest training images, right and wrong ones marked.

    Args:
        run: the run.
        folded: whether only the first few are shown at once.

    Returns:
        The sheets, or None where there are none.
    """
    names = ("query_images", "query_labels", "neighbour_images", "neighbour_labels", "neighbour_similarities")
    arrays = [run.pictures.get(name) for name in names]
    if any(array is None for array in arrays):
        return None
    sheets = [_sheet(run, *of_query) for of_query in zip(*arrays, strict=True)]
    right = float(np.mean(arrays[3] == arrays[1][:, None]))
    summary = element("p", f"{100 * right:.0f} % of the neighbours shown are of their query's class.", class_="note")
    shown, rest = (sheets[:FEW_QUERIES], sheets[FEW_QUERIES:]) if folded else (sheets, [])
    more = element("details", element("summary", f"{len(rest)} more queries"), element("div", *rest, class_="sheets"))
    return element("div", summary, element("div", *shown, class_="sheets"), *([more] if rest else []))


def _sheet(run: Run, query: Any, label: Any, neighbours: Any, labels: Any, similarities: Any) -> Html:
    name = class_name(run, int(label))
    shown = element("div", _image(query, f"query, {name}"), element("span", name), class_="query")
    items = []
    for image, other, similarity in zip(neighbours, labels, similarities, strict=True):
        same, other_name = other == label, class_name(run, int(other))
        mark = element("b", "✓" if same else "✗", class_="mark", aria_hidden="true")
        words = f"{'same class' if same else 'another class'}, {other_name}, similarity {similarity:.2f}"
        text = element("span", mark, f" {other_name}")
        number = element("small", f"{similarity:.2f}")
        items.append(element("li", _image(image, words), text, number, class_="right" if same else "wrong"))
    return element("div", shown, element("ol", *items), class_="neighbours")


def _image(pixels: np.ndarray, alt: str) -> Html:
    from PIL import Image

    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    height, width = pixels.shape[:2]
    sharp = "sharp" if max(height, width) < SHARP_BELOW else None
    return element("img", src=_uri(picture, LARGEST_PNG), alt=alt, width=width, height=height, class_=sharp)


def _uri(picture: Any, largest_png: int) -> str:
    """The picture as a data URI: PNG, or JPEG where that would be large."""
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        written = io.BytesIO()
        picture.save(written, kind, **options)
        if written.tell() <= largest_png:
            break
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
