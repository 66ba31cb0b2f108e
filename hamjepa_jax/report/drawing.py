"""matplotlib's figures as SVG inside a page: colours and fonts are the page's, and no two things have the same id."""

import io
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from hamjepa_jax.report.elements import Html

# Inches. A unit of the SVG is 1/72 inch, about a pixel where a figure is as wide as a phone.
MEDIUM = (4.6, 3.1)
SMALL = (2.55, 1.7)

# What is drawn in these colours gets those of the page: by their place in the list, readable on light and on dark.
SERIES = (
    *("#0072b2", "#d55e00", "#00805a", "#b24c8f", "#9a6f00"),
    *("#3a9bd9", "#6b4fbb", "#7a4b2a", "#6b7a1e", "#b3123c"),
)
INK, NEUTRAL, GRID, SURFACE = "#102030", "#708090", "#d0d7de", "#fefefc"
PAGE_COLORS = {
    INK: "currentColor",
    NEUTRAL: "var(--neutral)",
    GRID: "var(--grid)",
    SURFACE: "var(--surface)",
} | {color: f"var(--series-{number})" for number, color in enumerate(SERIES)}
DASHES = {"solid": "solid", "dashed": (0, (4, 2)), "dotted": (0, (1, 1.5))}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # An offset beside a small figure is overlooked.
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "hamjepa_jax",
}


def color_of(number: int) -> str:
    """The colour of the series of this number; they begin again after ten."""
    return SERIES[number % len(SERIES)]


def draw(paint: Callable[[Any], None], *, title: str, size: tuple[float, float] = MEDIUM) -> Html:
    """Draws a figure of one pair of axes.

    Args:
        paint: draws into the axes.
        title: what it shows, for those who cannot see it.
        size: width and height in inches.

    Returns:
        The SVG, see `numbered`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
        paint(figure.subplots())
        written = io.StringIO()
        figure.savefig(written, format="svg")
    return _for_a_page(written.getvalue(), title)


def numbered(document: str) -> str:
    """Makes the ids of every SVG in a document its own, and drops those that nothing refers to.

    Args:
        document: HTML with SVGs of `draw`.

    Returns:
        The document.
    """
    count = iter(range(document.count("<svg") + 1))

    def with_own_ids(match: re.Match) -> str:
        svg, number = match.group(), next(count)
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))

        def kept(found: re.Match) -> str:
            return f' id="f{number}-{found.group(1)}"' if found.group(1) in used else ""

        svg = re.sub(r' id="([^"]*)"', kept, svg)
        return re.sub(r'(url\(#|href="#)', rf"\g<1>f{number}-", svg)

    return re.sub(r"<svg\b.*?</svg>", with_own_ids, document, flags=re.DOTALL)


def log_axis(axis: Any, values: np.ndarray, *, most: int = 6) -> None:
    """Makes an axis logarithmic, with few ticks whose labels are text.

    Args:
        axis: the axis, of x or of y.
        values: what is drawn along it; only positive ones count.
        most: about how many ticks there is room for.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    values = values[np.isfinite(values) & (values > 0)]
    low, high = (values.min(), values.max()) if values.size else (1.0, 1.0)
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(FixedLocator(log_ticks(low, high, most)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_text(value)))


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Positions between two positive numbers, at most about `most`: powers of ten, or else steps of 1, 2 and 5."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**exponent for exponent in range(first, last + 1)]
    between = [power for power in powers if low / 1.3 <= power <= high * 1.3]
    if len(between) >= 3:
        return between[:: -(-len(between) // most)]
    finer = [m * power for power in powers for m in (1, 2, 5) if low / 1.15 <= m * power <= high * 1.15]
    return finer[:: -(-len(finer) // most)] if len(finer) >= 2 else [low, high]


def power_text(value: float) -> str:
    """A number as a label of few digits: 0.02, 10⁻⁴ or −5·10⁻⁴."""
    if value < 0:
        return f"−{power_text(-value)}"
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.2e}".partition("e")
    if -3 <= int(exponent) <= 3:
        return f"{value:.3g}" if int(exponent) < 3 else f"{value:.0f}"
    factor = f"{float(digits):g}"
    return ("" if factor == "1" else f"{factor}·") + f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def _with_few_digits(attribute: re.Match) -> str:
    """Coordinates to a hundredth of a pixel."""
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found.group()):.2f}", attribute.group())


def _for_a_page(svg: str, title: str) -> Html:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', svg).group(1)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="{box}" role="img" aria-label="{label}">', svg, count=1, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    for drawn, shown in PAGE_COLORS.items():
        svg = svg.replace(drawn, shown)
    # The family is the page's. matplotlib 3.9 writes weight, size and family in one.
    svg = re.sub(r"font: (?:(\d+) )?([\d.]+px) [^;\"]*", r"font-weight: \1; font-size: \2", svg)
    svg = re.sub(r"font-family: [^;\"]*; ?|font-weight: ; ", "", svg)
    svg = re.sub(r'(?<= )(d|x|y|transform|points)="[^"]*"', _with_few_digits, svg)
    return Html(re.sub(r"\s*\n\s*", "\n", svg).strip())
