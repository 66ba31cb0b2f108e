"""The colours of the page can be told from its backgrounds, on light and on dark."""

import re

import pytest

from hamjepa_jax.report import drawing, style

# Of the Web Content Accessibility Guidelines, for text and for what figures are made of.
TEXT, GRAPHICS = 4.5, 3.0


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(params=[0, 1], ids=["light", "dark"])
def colors(request):
    """The variables of one of the two schemes, which the style sheet sets in this order."""
    schemes = re.findall(r":root \{ (?:color-scheme: light dark; )?(--series-0.*?) \}", style.CSS)
    assert len(schemes) == 2
    return dict(re.findall(r"--([\w-]+): (#\w{6});", schemes[request.param]))


def test_text_is_readable(colors):
    for text in ("ink", "soft", "accent", "right", "wrong", "neutral"):
        for background in ("page", "surface"):
            assert contrast(colors[text], colors[background]) >= TEXT, (text, background)


def test_curves_are_visible(colors):
    for number in range(len(drawing.SERIES)):
        assert contrast(colors[f"series-{number}"], colors["surface"]) >= GRAPHICS, number


def test_every_colour_of_a_figure_is_defined(colors):
    used = {found for shown in drawing.PAGE_COLORS.values() for found in re.findall(r"var\(--([\w-]+)\)", shown)}
    assert used <= colors.keys()
    assert len({colors[name] for name in used}) == len(used)
