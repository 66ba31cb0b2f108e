"""What curves are compared with, and long curves made short."""

import math

import numpy as np

MOST_POINTS = 500


def isotropic_cosine_density(cosines: np.ndarray, dim: int) -> np.ndarray:
    """Density of the cosine of two independent, uniform directions.

        f(c) = Γ(D/2) / (√π·Γ((D − 1)/2)) · (1 − c²)^((D − 3)/2)

    Args:
        cosines: c, between −1 and 1, both excluded.
        dim: the dimension D, at least 2.

    Returns:
        The density at each.
    """
    log_scale = math.lgamma(dim / 2) - math.lgamma((dim - 1) / 2) - 0.5 * math.log(math.pi)
    return np.exp(log_scale + (dim - 3) / 2 * np.log1p(-np.square(cosines)))


def isotropic_norm_density(norms: np.ndarray, dim: int) -> np.ndarray:
    """Density of r = ‖z‖/√D for z ~ N(0, I): that of the χ distribution, scaled.

        f(r) = 2·(D/2)^(D/2) / Γ(D/2) · r^(D − 1)·exp(−D·r²/2)

    Args:
        norms: r, above 0.
        dim: the dimension D.

    Returns:
        The density at each.
    """
    log_scale = math.log(2) + dim / 2 * math.log(dim / 2) - math.lgamma(dim / 2)
    return np.exp(log_scale + (dim - 1) * np.log(norms) - dim / 2 * np.square(norms))


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Leaves out points of a curve that cannot be told apart when it is drawn.

    The first and the last point stay, and the lowest and the highest of every stretch of the curve.

    Args:
        x: positions (N,).
        y: values (N,), possibly NaN.
        most: points that may stay, at least 4.

    Returns:
        The positions and values of at most `most` points, in their order.
    """
    if len(x) <= most:
        return x, y
    kept = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), (most - 2) // 2):
        values = y[stretch]
        if np.isfinite(values).any():
            kept |= {int(stretch[np.nanargmin(values)]), int(stretch[np.nanargmax(values)])}
        else:
            # A gap stays a gap.
            kept.add(int(stretch[0]))
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]
