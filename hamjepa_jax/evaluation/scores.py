"""All scores of one set of features, each computed once: neighbours, probes, spectrum and geometry."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from hamjepa_jax.evaluation import bootstrap
from hamjepa_jax.evaluation.geometry import geometry
from hamjepa_jax.evaluation.knn import fitting, nearest_neighbours, vote
from hamjepa_jax.evaluation.probe import Outcome, few_label_probe, learning_rate_sweep
from hamjepa_jax.evaluation.spectra import spectrum

# Computes a part of the scores, or knows it already: (name of the part, how to compute it) → plain JSON values.
Part = Callable[[str, Callable[[], Any]], Any]


class Labelled(NamedTuple):
    """Features of the training and of the test images, and their labels.

    Attributes:
        train_x: (N, D).
        train_y: (N,).
        test_x: (M, D).
        test_y: (M,).
        alignment: that of two views of test images, see `spectra.alignment`, if there are views.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    alignment: float | None = None


def score(
    data: Labelled,
    part: Part,
    *,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
    probe: Mapping[str, Any],
    few_labels: Mapping[str, Any],
    seed: int,
    mesh: Mesh,
) -> dict[str, Any]:
    """All scores of one set of features.

    Args:
        data: the features.
        part: computes a part, or knows it from before.
        num_classes: number of classes.
        ks: numbers of neighbours.
        temperature: that of the weighted vote.
        probe: see `linear`.
        few_labels: see `few`.
        seed: seed of the run.
        mesh: devices that share the queries of the nearest-neighbour search.

    Returns:
        {"dim", "knn", "linear_probe", "few_label_probe", "spectrum", "geometry"}; spectrum and geometry are those of
        the training features.
    """
    labelled = {"num_classes": num_classes, "seed": seed}
    return {
        "dim": data.train_x.shape[1],
        "knn": part("nearest neighbours", lambda: knn(data, ks=ks, temperature=temperature, mesh=mesh, **labelled)),
        "linear_probe": part("linear probe", lambda: linear(data, **probe, **labelled)),
        "few_label_probe": part("few-label probes", lambda: few(data, **few_labels, **labelled)),
        "spectrum": part("spectrum", lambda: spectrum(data.train_x)),
        "geometry": part("geometry", lambda: geometry(data.train_x, seed=seed)) | {"alignment": data.alignment},
    }


def knn(
    data: Labelled, *, num_classes: int, ks: Sequence[int], temperature: float, seed: int, mesh: Mesh
) -> dict[str, Any]:
    """Nearest-neighbour accuracies of the plain and of the weighted vote, with intervals.

    Args:
        data: the features.
        num_classes: number of classes.
        ks: numbers of neighbours; those larger than the gallery are left out.
        temperature: that of the weighted vote.
        seed: seed of the bootstrap.
        mesh: devices that share the queries.

    Returns:
        {"k", "top1", "top5", "top1_interval", "top5_interval", "temperature", and the same of "weighted_…"}.
    """
    ks = fitting(ks, len(data.train_x))
    neighbours = nearest_neighbours(data.train_x, data.test_x, k=ks[-1], mesh=mesh)
    labels = {"labels": data.train_y, "own_labels": data.test_y}
    found: dict[str, Any] = {"k": ks, "temperature": temperature}
    for prefix, of_vote in (("", None), ("weighted_", temperature)):
        hits = vote(neighbours, **labels, ks=ks, num_classes=num_classes, temperature=of_vote)
        found |= {f"{prefix}{name}": value for name, value in _with_intervals(hits, seed).items()}
    return found


def linear(
    data: Labelled,
    *,
    num_classes: int,
    learning_rate: float,
    learning_rates: Sequence[float],
    weight_decay: float,
    epochs: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """The linear probe at the protocol's learning rate and at several others, trained at once.

    Args:
        data: the features.
        num_classes: number of classes.
        learning_rate: that of the protocol.
        learning_rates: the others, in which it may be contained.
        weight_decay: decoupled decay of every parameter.
        epochs: passes over the training features.
        batch_size: examples a step.
        seed: seed of the initialisation, of the order and of the bootstrap.

    Returns:
        {"learning_rate", "top1", "top5", intervals, "sweep": {"learning_rate", "validation_top1", "top1", "top5",
        "best"}}; the best is chosen by training images that its twin has not seen.
    """
    rates = sorted({learning_rate, *learning_rates})
    sweep = learning_rate_sweep(
        *data[:4],
        num_classes=num_classes,
        learning_rates=rates,
        weight_decay=weight_decay,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
    )
    scores = _with_intervals(sweep.test, seed)

    def of_rate(index: int) -> dict[str, Any]:
        return {"learning_rate": rates[index]} | {name: values[index] for name, values in scores.items()}

    return of_rate(rates.index(learning_rate)) | {
        "sweep": {
            "learning_rate": rates,
            "validation_top1": sweep.validation_top1.tolist(),
            "top1": scores["top1"],
            "top5": scores["top5"],
            "best": of_rate(int(np.argmax(sweep.validation_top1))),
        }
    }


def few(
    data: Labelled,
    *,
    num_classes: int,
    labels_per_class: Sequence[int],
    fractions: Sequence[float],
    batch_size: int,
    seed: int,
    **settings: Any,
) -> dict[str, Any]:
    """Probes that know few labels: so many of each class, or a fraction of them all.

    Args:
        data: the features.
        num_classes: number of classes.
        labels_per_class: labelled examples of each class, for each probe; all of a class that has fewer.
        fractions: share of the examples of each class, at least one, for each probe.
        batch_size: examples a step at most.
        seed: seed of the draws and of the bootstrap.
        **settings: see `probe.few_label_probe`.

    Returns:
        By name, such as "5" or "10%": {"labels_per_class" or "fraction", "draws", "top1", "top1_std", "top1_interval",
        "top5"}: means over the draws, their standard deviation, and an interval over test images.
    """
    counts = np.bincount(data.train_y, minlength=num_classes)
    wanted = {str(number): ({"labels_per_class": number}, np.minimum(counts, number)) for number in labels_per_class}
    for fraction in fractions:
        # A class that is not there at all has none.
        share = np.minimum(counts, np.maximum(1, np.round(fraction * counts).astype(int)))
        wanted[f"{100 * fraction:g}%"] = ({"fraction": fraction}, share)
    # One size for all, and so one compilation, but no larger than any of them needs.
    largest = max((int(np.broadcast_to(number, num_classes).sum()) for _, number in wanted.values()), default=1)
    settings |= {"num_classes": num_classes, "batch_size": min(batch_size, largest), "seed": seed}
    found = {}
    for name, (told, number) in wanted.items():
        outcome = few_label_probe(*data[:4], labels_per_class=number, **settings)
        of_draws = outcome.top1.mean(axis=1)
        found[name] = told | {
            "draws": len(of_draws),
            "top1": float(of_draws.mean()),
            "top1_std": float(of_draws.std(ddof=1)) if len(of_draws) > 1 else 0.0,
            "top1_interval": bootstrap.interval(outcome.top1.mean(axis=0), seed=seed).tolist(),
            "top5": float(outcome.top5.mean()),
        }
    return found


def _with_intervals(outcome: Outcome, seed: int) -> dict[str, list]:
    """Accuracies and intervals of outcomes (K, M)."""
    intervals = bootstrap.interval(np.stack([outcome.top1, outcome.top5]), seed=seed)
    return {
        "top1": outcome.top1.mean(axis=1).tolist(),
        "top5": outcome.top5.mean(axis=1).tolist(),
        "top1_interval": intervals[0].tolist(),
        "top5_interval": intervals[1].tolist(),
    }
