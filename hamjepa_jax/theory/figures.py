"""The theory in four pictures: what isotropy costs, why no marginal is safe, what is unique, what stays open."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from hamjepa_jax.plotting import BLACK, BLUE, GRAY, GREEN, ORANGE, VERMILION, picture
from hamjepa_jax.theory import curves

SHOWN = {
    "worst_direction": ("worst direction", VERMILION, "s"),
    "inverse_variance": ("inverse variance", BLUE, "o"),
    "entropy": ("entropy: $\\exp(2/d\\,\\cdot$ nats$)$", GREEN, "D"),
}


def draw_all(directory: Path, *, seed: int = 0) -> list[Path]:
    """Computes and draws the four pictures, in float64.

    Args:
        directory: where the PNG files go.
        seed: seed of everything random.

    Returns:
        Their paths.

    Raises:
        StorageError: if one cannot be written.
    """
    drawings: Mapping[str, tuple[Callable, Callable]] = {
        "theory_price_of_isotropy.png": (curves.price_of_isotropy, draw_price_of_isotropy),
        "theory_worst_geometry.png": (curves.worst_geometry, draw_worst_geometry),
        "theory_entropy_gap.png": (curves.entropy_gap, draw_entropy_gap),
        "theory_coupling_risk.png": (curves.coupling_risk, draw_coupling_risk),
    }
    with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
        for name, (compute, draw) in drawings.items():
            draw(directory / name, **compute(seed=seed))
    return [directory / name for name in drawings]


def draw_price_of_isotropy(
    path: Path,
    *,
    dim: int,
    condition_numbers: np.ndarray,
    closed_form: Mapping[str, Any],
    searched_at: np.ndarray,
    searched: Mapping[str, Any],
) -> None:
    """Draws what isotropy costs against the condition number: lines of closed forms, markers of searches.

    Args:
        path: where the PNG goes.
        dim: dimension d.
        condition_numbers: κ of the lines.
        closed_form: by price, factors for each κ.
        searched_at: κ of the markers.
        searched: by price, factors for each κ of the markers.

    Raises:
        StorageError: if it cannot be written; an older one is intact then.
    """
    with picture(path, size=(8.5, 5.4)) as (_, axes):
        axes = axes[0, 0]
        for name, (label, color, marker) in SHOWN.items():
            axes.plot(condition_numbers, closed_form[name], color=color)
            axes.plot(searched_at, searched[name], marker, color=color, markerfacecolor="white", markersize=8)
            _name_line(axes, label, condition_numbers[-1], closed_form[name][-1], color)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="condition number of the geometry $H$",
            ylabel="isotropic / optimal, factor",
            title=f"The less round the geometry, the more isotropy costs ($d$ = {dim})",
        )
        note = "lines: closed forms\nmarkers: optimum found by search"
        axes.text(0.03, 0.95, note, transform=axes.transAxes, va="top")


def draw_worst_geometry(path: Path, *, dim: int, condition_numbers: np.ndarray, prices: Mapping[str, Any]) -> None:
    """Draws the price of fixed marginals under their worst geometry, against its condition number.

    Args:
        path: where the PNG goes.
        dim: dimension d.
        condition_numbers: κ.
        prices: by name, in nats per dimension, for each κ.

    Raises:
        StorageError: if it cannot be written; an older one is intact then.
    """
    with picture(path, size=(8.5, 5.4)) as (_, axes):
        axes = axes[0, 0]
        for (name, price), color in zip(prices.items(), (ORANGE, BLUE, GREEN), strict=True):
            axes.plot(condition_numbers, price, color=color)
            _name_line(axes, name, condition_numbers[-1], price[-1], color)
        axes.set(
            xscale="log",
            xlabel="condition number of the worst geometry $H$",
            ylabel="entropy lost, nats per dimension",
            title=f"Every fixed marginal is expensive under some geometry ($d$ = {dim})",
        )


def draw_entropy_gap(
    path: Path,
    *,
    exponents: np.ndarray,
    gaps: Any,
    divergences: Any,
    dim: int,
    condition_number: float,
) -> None:
    """Draws the entropy gap and the divergence from the optimum, which are one curve with one zero.

    Args:
        path: where the PNG goes.
        exponents: a of Σ ∝ H^{-a}.
        gaps: entropy that N(0, Σ) lacks, in nats.
        divergences: KL(N(0, Σ) ‖ N(0, Σ*)), in nats.
        dim: dimension d.
        condition_number: that of H.

    Raises:
        StorageError: if it cannot be written; an older one is intact then.
    """
    with picture(path, size=(8.5, 5.4)) as (_, axes):
        axes = axes[0, 0]
        axes.plot(exponents, gaps, color=BLUE, label="entropy lost")
        every = slice(None, None, 4)
        markers = {"color": VERMILION, "markerfacecolor": "white", "markersize": 7}
        label = r"KL$(N(0,\Sigma)\,\|\,N(0,\Sigma^*))$"
        axes.plot(exponents[every], divergences[every], "o", label=label, **markers)
        marks = {"isotropic\n$a$ = 0": 0.0, "optimal\n$a$ = 1": 1.0}
        top = axes.get_ylim()[1]
        for mark, exponent in marks.items():
            axes.axvline(exponent, color=GRAY, linestyle=":", zorder=0)
            axes.annotate(mark, (exponent, 0.97 * top), (6, 0), textcoords="offset points", va="top")
        axes.set(
            xlabel=r"exponent $a$ of the covariance $\Sigma \propto H^{-a}$, at one budget",
            ylabel="nats",
            title=f"The entropy lost is a divergence: one optimum ($d$ = {dim}, $\\kappa$ = {condition_number:g})",
        )
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper left", bbox_to_anchor=(0.5, 0.82))


def draw_coupling_risk(
    path: Path,
    *,
    angles: np.ndarray,
    closed_form: Any,
    sampled_at: np.ndarray,
    sampled: np.ndarray,
    statistics: np.ndarray,
    expected_statistic: float,
    num_pairs: int,
) -> None:
    """Draws the excess risk of a wrong rotation against its angle, and below it SIGReg, which does not see the angle.

    Args:
        path: where the PNG goes.
        angles: degrees.
        closed_form: excess risk at these, over the irreducible risk.
        sampled_at: degrees of the samples.
        sampled: measured excess risk (angles, samples), over the irreducible risk.
        statistics: SIGReg (angles, samples).
        expected_statistic: the mean of SIGReg for Gaussian samples.
        num_pairs: pairs in a sample.

    Raises:
        StorageError: if it cannot be written; an older one is intact then.
    """
    with picture(path, rows=2, size=(8.5, 7.0), sharex=True, height_ratios=(3, 2)) as (figure, axes):
        risk, marginal = axes[:, 0]
        bars = {"fmt": "o", "markerfacecolor": "white", "capsize": 3}
        risk.plot(angles, closed_form, color=BLUE)
        risk.errorbar(sampled_at, sampled.mean(1), sampled.std(1, ddof=1), color=BLUE, **bars)
        risk.set_ylabel("excess risk / irreducible risk")
        risk.set_title("Excess risk of the predictor that ignores the rotation", loc="left")
        marginal.errorbar(sampled_at, statistics.mean(1), statistics.std(1, ddof=1), color=VERMILION, **bars)
        marginal.axhline(expected_statistic, color=BLACK, linestyle=":", zorder=0)
        marginal.set_title("SIGReg of the second view: the same at every angle (dotted: Gaussian law)", loc="left")
        samples = f"{num_pairs:,} pairs; bars: ± 1 standard deviation over {sampled.shape[1]} samples"
        marginal.set(ylim=(0, 2.5 * expected_statistic), ylabel="SIGReg", xlabel=f"rotation, degrees ({samples})")
        marginal.set_xticks(sampled_at[::2])
        figure.suptitle("Same marginals, different best predictor")


def _name_line(axes: Any, label: str, x: float, y: float, color: str) -> None:
    style = {"textcoords": "offset points", "va": "center", "color": color, "annotation_clip": False}
    axes.annotate(label, (x, y), (10, 0), **style)
