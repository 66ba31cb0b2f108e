"""How steps look in every figure: the same name, the same colour, the same order."""

from typing import Any

from hamjepa_jax.physics.gallery import LEARNED, STEPS
from hamjepa_jax.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION

NAMES = {
    "explicit_euler": "explicit Euler",
    LEARNED: "learned step",
    "symplectic_euler": "symplectic Euler",
    "leapfrog": "leapfrog",
    "yoshida4": "Yoshida-4",
    "implicit_midpoint": "implicit midpoint",
}
COLORS = dict(zip(STEPS, (VERMILION, BLACK, PURPLE, BLUE, GREEN, ORANGE), strict=True))


def add_legend(figure: Any) -> None:
    """Names the colours of all steps below the axes.

    Args:
        figure: a matplotlib figure with a constrained layout.
    """
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=COLORS[step], linewidth=4, label=NAMES[step]) for step in STEPS]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(STEPS))
