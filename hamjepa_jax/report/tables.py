"""The tables of the page: configurations and their differences, accuracies, spectra, and what was diagnosed."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from hamjepa_jax.report import drawing
from hamjepa_jax.report.elements import Html, element, joined, table
from hamjepa_jax.report.figures_scores import BASELINES
from hamjepa_jax.report.reading import HEADLINE_K, Run, at, differences, numbers
from hamjepa_jax.workdir import flatten

DASH = "–"


def configuration(run: Run) -> Html:
    """The whole configuration, a table for each of its groups.

    Args:
        run: the run.

    Returns:
        The tables.
    """
    groups = {name: flatten(value) for name, value in run.config.items() if isinstance(value, dict)}
    alone = {name: value for name, value in run.config.items() if not isinstance(value, dict)}
    return joined(
        *(
            table(
                name, ["key", "value"], [[key, _value(value)] for key, value in group.items()], label=f"config.{name}"
            )
            for name, group in ({"experiment": alone} | groups).items()
            if group
        )
    )


def configuration_differences(runs: Sequence[Run]) -> Html:
    """The keys in which the configurations differ, a column for each run.

    Args:
        runs: the runs.

    Returns:
        The table, or a sentence if nothing differs.
    """
    found = differences(runs)
    if not found:
        return element("p", "The configurations are the same.", class_="note")
    rows = [[element("code", key), *(_value(value) for value in values)] for key, values in found.items()]
    caption = f"The {len(rows)} keys in which the configurations differ; {DASH} where a run does not have the key."
    return table(caption, ["key", *(run.label for run in runs)], rows, label="differences of the configurations")


def accuracies(runs: Sequence[Run]) -> Html | None:
    """Accuracies of every coordinate and baseline with their intervals.

    Args:
        runs: the runs.

    Returns:
        The table, or None before there is an evaluation.
    """
    named = _named_scores(runs)
    if not named:
        return None
    every = [scores for _, scores in named]
    ks = sorted({k for scores in every for k in at(scores, "knn", "k") or ()}, key=lambda k: (k != HEADLINE_K, k))
    columns = [(f"kNN@{k}", lambda s, k=k: _of_k(s, "top1", k)) for k in ks[:1]]
    columns.append((f"weighted kNN@{HEADLINE_K}", lambda s: _of_k(s, "weighted_top1", HEADLINE_K)))
    columns.append(("linear probe", lambda s: _probe(at(s, "linear_probe"))))
    columns.append(("probe, best rate", lambda s: _probe(at(s, "linear_probe", "sweep", "best"))))
    few = dict.fromkeys(name for scores in every for name in at(scores, "few_label_probe") or {})
    for name in few:
        label = f"{name} of the labels" if name.endswith("%") else f"{name} label{'s' * (name != '1')} a class"
        columns.append((label, lambda s, name=name: _probe(at(s, "few_label_probe", name))))
    columns.append(("effective rank", lambda s: _plain(at(s, "spectrum", "effective_rank"), 1)))
    columns += [(f"kNN@{k}", lambda s, k=k: _of_k(s, "top1", k)) for k in ks[1:]]
    cells = {name: [column(scores) for scores in every] for name, column in columns}
    cells = {name: column for name, column in cells.items() if any(cell != DASH for cell in column)}
    rows = [[name, *row] for (name, _), row in zip(named, zip(*cells.values(), strict=True), strict=True)]
    caption = (
        "Top-1 test accuracy in %, and 95 % intervals over test images; with few labels, means over draws of them. "
        "kNN@20 and the linear probe at the protocol's learning rate are the headlines; the best rate was chosen by "
        "training images."
    )
    return table(caption, ["features", *cells], rows, label="accuracies")


def geometry(runs: Sequence[Run]) -> Html | None:
    """Ranks and other single numbers about every coordinate and baseline.

    Args:
        runs: the runs.

    Returns:
        The table, or None before there is an evaluation.
    """
    named = _named_scores(runs)
    keys = {
        "D": (("dim",), 0),
        "effective rank": (("spectrum", "effective_rank"), 1),
        "participation ratio": (("spectrum", "participation_ratio"), 1),
        "RankMe": (("spectrum", "rank_me"), 1),
        "anisotropy": (("spectrum", "anisotropy"), 3),
        "α": (("spectrum", "alpha", "exponent"), 2),
        "R²\u00a0of\u00a0α": (("spectrum", "alpha", "r_squared"), 2),
        "alignment": (("geometry", "alignment"), 3),
        "uniformity": (("geometry", "uniformity"), 2),
        "not Gaussian in shape": (("geometry", "gaussianity", "standardized", "share_rejected"), 2),
        "not\u00a0N(0,\u00a01)": (("geometry", "gaussianity", "plain", "share_rejected"), 2),
    }
    cells = {name: [_plain(at(scores, *path), digits) for _, scores in named] for name, (path, digits) in keys.items()}
    cells = {name: column for name, column in cells.items() if any(cell != DASH for cell in column)}
    if not cells:
        return None
    rows = [[name, *row] for (name, _), row in zip(named, zip(*cells.values(), strict=True), strict=True)]
    caption = (
        "Numbers of dimensions in use: the exponential of the spectrum's entropy, (Σλ)²/Σλ², and RankMe, which does "
        "not centre. Anisotropy is the largest eigenvalue's share; λᵢ ∝ i^(−α). The last two are "
        "shares of random directions in which normality is rejected at 5 %."
    )
    return table(caption, ["features", *cells], rows, label="spectra and geometry")


def diagnosed(runs: Sequence[Run]) -> Html:
    """What the diagnosed predictors are, and their main numbers, a column for each run.

    Args:
        runs: the runs that were diagnosed.

    Returns:
        The table.
    """
    rows = {
        "predictor": lambda d: d.get("predictor"),
        "energy": lambda d: d.get("energy"),
        "scheme": lambda d: d.get("scheme"),
        "step size τ": lambda d: d.get("step_size"),
        "steps K": lambda d: d.get("num_steps"),
        "residual scale": lambda d: d.get("residual_scale"),
        "residual force / base force": lambda d: _short(d.get("residual_force_ratio")),
        "states, for Jacobians": lambda d: d.get("num_states"),
        "states, for round trips and roll-outs": lambda d: d.get("num_rollouts"),
        "states, for the rest": lambda d: d.get("num_examples"),
        "prediction error": lambda d: _short(at(d, "prediction", "error")),
        "the same of no change": lambda d: _short(at(d, "prediction", "identity")),
        "the same of the mean": lambda d: _short(at(d, "prediction", "mean")),
        "median log |det J|, float64": lambda d: _median(at(d, "log_abs_det", "float64")),
        "median log |det J|, float32": lambda d: _median(at(d, "log_abs_det", "float32")),
        "median symplectic defect, float64": lambda d: _median(at(d, "symplectic_defect", "float64")),
        "median symplectic defect, float32": lambda d: _median(at(d, "symplectic_defect", "float32")),
    }
    cells = [[name, *(_value(find(run.diagnostics)) for run in runs)] for name, find in rows.items()]
    cells = [row for row in cells if any(cell != DASH for cell in row[1:])]
    caption = f"The trained predictors on held-out states. {DASH} is what makes no sense for a predictor."
    return table(caption, ["", *(run.label for run in runs)], cells, label="diagnostics of the predictors")


def score_cell(top1: Any, interval: Any) -> Html | str:
    """An accuracy in per cent, with its interval below it where there is one."""
    value, bounds = numbers([top1])[0], numbers(interval)
    if not np.isfinite(value):
        return DASH
    if bounds.shape != (2,):
        return f"{100 * value:.1f}"
    return joined(f"{100 * value:.1f}", element("small", f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}"))


def of_k(scores: Any, name: str, k: int) -> tuple[float, Any] | None:
    """The kNN accuracy for a k and its interval, or None where there is none."""
    ks, values = at(scores, "knn", "k") or [], at(scores, "knn", name) or []
    if k not in ks or len(values) != len(ks):
        return None
    intervals = at(scores, "knn", f"{name}_interval")
    return values[ks.index(k)], intervals[ks.index(k)] if intervals else None


def _of_k(scores: Any, name: str, k: int) -> Html | str:
    found = of_k(scores, name, k)
    return score_cell(*found) if found else DASH


def _probe(probe: Any) -> Html | str:
    return score_cell(at(probe, "top1"), at(probe, "top1_interval"))


def _named_scores(runs: Sequence[Run]) -> list[tuple[str, Any]]:
    """Scores of every coordinate of every run, then of the baselines; raw pixels once for each data set."""
    several, named, pixels = len(runs) > 1, [], {}
    for run in runs:
        for name, scores in (at(run.metrics, "features") or {}).items():
            named.append((f"{run.label}: {name}" if several else name, scores))
        if scores := at(run.metrics, "baselines", "random_encoder"):
            of = f" of {run.label}" if several else ""
            named.append((BASELINES["random_encoder"] + of, scores))
        if scores := at(run.metrics, "baselines", "pixels"):
            pixels.setdefault(at(run.config, "data", "name"), scores)
    for name, scores in pixels.items():
        named.append((BASELINES["pixels"] + (f" of {name}" if len(pixels) > 1 else ""), scores))
    return named


def _plain(value: Any, digits: int) -> str:
    number = numbers([value])[0]
    return f"{number:.{digits}f}" if np.isfinite(number) else DASH


def _short(value: Any) -> str | None:
    number = numbers([value])[0]
    return drawing.power_text(float(number)) if np.isfinite(number) else None


def _median(values: Any) -> str | None:
    found = numbers(values)
    found = found[np.isfinite(found)]
    return drawing.power_text(float(np.median(found))) if found.size else None


def _value(value: Any) -> str:
    if value is None:
        return DASH
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
