"""HTML that cannot be broken by what it shows: text is escaped unless it is HTML already."""

import html
from typing import NamedTuple

VOID = {"img", "meta", "link", "br"}


class Html(str):
    """Text that is HTML already."""


class Key(NamedTuple):
    """An entry of a legend.

    Attributes:
        label: what is drawn so.
        color: a colour of CSS.
        look: "solid", "dashed" or "dotted" line, "area", "dot" or "ring".
    """

    label: str
    color: str
    look: str = "solid"


class Panel(NamedTuple):
    """A figure.

    Attributes:
        title: what it shows.
        svg: the drawing.
        caption: how to read it.
        legend: what the colours and lines mean.
        size: a class of CSS, "large" for a figure among smaller ones.
    """

    title: str
    svg: Html
    caption: str
    legend: tuple[Key, ...] = ()
    size: str = ""


def element(tag: str, /, *content: str, **attributes: object) -> Html:
    """An element.

    Args:
        tag: its name.
        content: what is inside, one after the other; anything but Html is escaped.
        attributes: its attributes, `class_` for class and `_` for `-`; None leaves one out, True has no value.

    Returns:
        The element.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None
    )
    opened = f"<{tag}{written}>"
    return Html(opened if tag in VOID else f"{opened}{joined(*content)}</{tag}>")


def joined(*content: str) -> Html:
    """Several pieces as one; anything but Html is escaped."""
    return Html("".join(piece if isinstance(piece, Html) else html.escape(str(piece)) for piece in content))


def table(caption: str, header: list[str], rows: list[list[str]], *, label: str) -> Html:
    """A table that scrolls inside its own box where it is too wide; the first column names the rows.

    Args:
        caption: how to read it.
        header: names of the columns.
        rows: cells, as many a row as there are columns.
        label: what the box is called by a screen reader.

    Returns:
        The table.
    """
    # Stays where it is when the table scrolls below it.
    caption = element("span", caption, class_="still")
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in header)))
    body = element(
        "tbody",
        *(
            element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))
            for row in rows
        ),
    )
    # With a tabindex, arrow keys scroll it.
    box = {"class_": "scroll", "role": "region", "aria_label": label, "tabindex": 0}
    return element("div", element("table", element("caption", caption), head, body), **box)


def legend(keys: tuple[Key, ...]) -> Html:
    """A list of what colours and lines mean."""
    items = (element("li", _swatch(key), key.label) for key in keys)
    return element("ul", *items, class_="legend")


def figure(panel: Panel) -> Html:
    """A figure with its title, legend and caption.

    Args:
        panel: what it shows.

    Returns:
        The figure.
    """
    parts = [element("p", panel.title, class_="title")]
    parts += [legend(panel.legend)] if panel.legend else []
    caption = element("figcaption", panel.caption)
    return element("figure", *parts, panel.svg, caption, class_=f"panel {panel.size}".strip())


def grid(panels: list[Panel], *, size: str = "") -> Html:
    """Figures beside each other, as many as there is room for."""
    if not panels:
        return Html("")
    return element("div", *(figure(panel) for panel in panels), class_=f"grid {size}".strip())


def _swatch(key: Key) -> Html:
    dashes = {"dashed": "5 3", "dotted": "1.5 2.5"}.get(key.look)
    paint = f"--paint: {key.color}"
    if key.look == "area":
        shape = element("rect", x=4, y=1, width=14, height=8, style="fill: var(--paint)")
    elif key.look in ("dot", "ring"):
        fill = "var(--paint)" if key.look == "dot" else "var(--surface)"
        shape = element("circle", cx=11, cy=5, r=3.4, style=f"fill: {fill}; stroke: var(--paint); stroke-width: 1.6")
    else:
        stroke = "stroke: var(--paint); stroke-width: 2.4"
        shape = element("line", x1=1, y1=5, x2=21, y2=5, style=stroke, stroke_dasharray=dashes)
    return element("svg", shape, viewBox="0 0 22 10", class_="swatch", style=paint, aria_hidden="true")
