"""Directories of runs as training, evaluation and diagnosis leave them, with made-up numbers."""

import json

import numpy as np
import pytest
from PIL import Image


def histogram(values, bins=20):
    density, edges = np.histogram(values, bins=bins, density=True)
    return {"edges": edges.tolist(), "density": density.tolist(), "mean": values.mean(), "std": values.std()}


def normality(rng):
    values = [0.1, 0.2, 0.3, 0.5, 1.0]
    test = {"num_directions": 64, "num_samples": 100, "share_rejected": 0.3, "p_values": histogram(rng.random(64))}
    quantiles = {"quantiles": [0.05, 0.25, 0.5, 0.75, 0.95]}
    return test | {"statistic": quantiles | {"values": values}, "null": quantiles | {"values": values}}


def accuracy(top1):
    interval = [top1 - 0.02, top1 + 0.01]
    return {"top1": top1, "top5": 1.0, "top1_interval": interval, "top5_interval": [1.0, 1.0]}


def scores(rng, *, dim, top1):
    ks, rates = [1, 5, 20, 50], [0.001, 0.01, 0.1]
    knn = {"k": ks, "temperature": 0.07}
    for prefix, gain in (("", 0.0), ("weighted_", 0.011)):
        values = [top1 + gain - 0.001 * (k - 20) for k in ks]
        knn |= {f"{prefix}top1": values, f"{prefix}top5": [1.0] * 4}
        knn |= {f"{prefix}top1_interval": [[v - 0.02, v + 0.01] for v in values]}
    few = {"labels_per_class": 5, "draws": 10, "top1_std": 0.02} | accuracy(top1 - 0.1)
    sweep = {"learning_rate": rates, "validation_top1": [0.5] * 3, "top1": [top1] * 3, "top5": [1.0] * 3}
    sweep["best"] = {"learning_rate": 0.001, **accuracy(top1 + 0.02)}
    z = rng.normal(size=(200, dim))
    norms = np.linalg.norm(z, axis=1)
    alpha = {"exponent": 1.1, "r_squared": 0.99, "first": 4, "last": dim}
    return {
        "dim": dim,
        "knn": knn,
        "linear_probe": {"learning_rate": 0.01, **accuracy(top1 + 0.01), "sweep": sweep},
        "few_label_probe": {"5": few, "1%": few},
        "spectrum": {
            "eigenvalues": (1.0 / np.arange(1, dim + 1)).tolist(),
            "effective_rank": 12.34,
            "participation_ratio": 9.87,
            "rank_me": 15.43,
            "anisotropy": 0.123,
            "alpha": alpha,
        },
        "geometry": {
            "alignment": None,
            "uniformity": -1.5,
            "cosines": histogram(np.clip(rng.normal(0.3, 0.1, 500), -1, 1)),
            "norms": histogram(norms / np.sqrt(dim)),
            "gaussianity": {"standardized": normality(rng), "plain": normality(rng)},
        },
    }


def evaluation(rng, *, variant, seed, split):
    names = {"q": 16, "p": 16, "qp": 32} if split else {"whole": 32}
    features = {name: scores(rng, dim=dim, top1=0.9 - 0.01 * i) for i, (name, dim) in enumerate(names.items())}
    state = {
        "canonical_correlations": np.linspace(0.99, 0.1, 16).tolist(),
        "shuffled": np.linspace(0.4, 0.05, 16).tolist(),
        "energy": histogram(rng.normal(0.5, 0.05, 200)),
        "potential": 0.26,
        "kinetic": 0.24,
    }
    return {
        "step": 60,
        "seed": seed,
        "variant": variant,
        "num_classes": 3,
        "class_names": ["cat", "dog", "axolotl & friends"],
        "num_train": 100,
        "num_test": 50,
        "features": features,
        "baselines": {name: scores(rng, dim=16, top1=0.7) for name in ("pixels", "random_encoder")},
        "state": state if split else None,
    }


def diagnosis(rng, *, variant, seed, flow):
    size = 8
    errors = {"float64": (1e-15 * (1 + rng.random(size))).tolist(), "float32": (1e-7 * (1 + rng.random(size))).tolist()}
    applications = list(range(0, 101, 10))
    wave = 1e-5 * (1 - np.cos(np.array(applications) / 10))
    band = {"median": wave.tolist(), "lower": (0.8 * wave).tolist(), "upper": (1.2 * wave).tolist()}
    norm = {name: (1 + 100 * np.array(values)).tolist() for name, values in band.items()}
    sensitivity = {
        "step_size": [0.0, 0.05, 0.1],
        "num_steps": [1, 2],
        "error": [[0.3, 0.25, 0.4], [0.3, 0.2, 0.6]],
        "trained": {"step_size": 0.05, "num_steps": 2},
    }
    return {
        "step": 60,
        "seed": seed,
        "variant": variant,
        "predictor": "hamiltonian_flow" if flow else "mlp",
        "energy": "separable_mlp" if flow else None,
        "scheme": "leapfrog" if flow else None,
        "step_size": 0.05 if flow else None,
        "num_steps": 2 if flow else None,
        "residual_scale": 0.02 if flow else None,
        "state_dim": 32,
        "num_states": size,
        "num_examples": 50,
        "data": "test",
        "log_abs_det": errors | {"method": "exact"},
        "symplectic_defect": errors,
        "reversibility": errors,
        "inverse": errors if flow else None,
        "singular_values": {"largest": [1.1] * size, "smallest": [1 / 1.1] * size},
        "rollout": {
            "applications": applications,
            "energy": band if flow else None,
            "modified_energy": band if flow else None,
            "norm": norm,
        },
        "residual_force_ratio": 0.02 if flow else None,
        "prediction": {"error": 0.2, "identity": 0.3, "mean": 0.9},
        "sensitivity": sensitivity if flow else None,
        "neighbourhood": {"k": [1, 5, 10], "overlap": [0.98, 0.97, 0.98], "chance": [0.02, 0.1, 0.2]},
    }


def log(rng, *, terms, num_records):
    records = []
    for number in range(num_records):
        record = {"step": number, "epoch": number / 10, "learning_rate": 1e-3, "loss": 1.0 / (1 + number)}
        record |= {
            "views_per_second": 100.0 if number else None,
            "input_wait": 0.1,
            "gradient_norm": 0.5,
            "skipped": 0.0,
        }
        record |= {term: float(rng.random()) for term in terms}
        record |= {f"gradient_share_{term}": 1 / len(terms) for term in terms}
        record |= {"online_knn20": 0.8, "online_ridge": 0.9} if number % 5 == 4 else {}
        records.append(record)
    records[-1]["warnings"] = ["step 59: warning: the term 'b' does not act"]
    return records


def pictures(rng):
    labels = rng.integers(0, 3, 60)
    return {
        "query_images": rng.integers(0, 255, (6, 8, 8, 3)).astype(np.uint8),
        "query_labels": np.array([0, 1, 2, 0, 1, 2]),
        "neighbour_images": rng.integers(0, 255, (6, 8, 8, 8, 3)).astype(np.uint8),
        "neighbour_labels": np.tile(np.arange(8) % 3, (6, 1)),
        "neighbour_similarities": np.tile(np.linspace(0.99, 0.6, 8), (6, 1)),
        "map_labels": labels,
        "map_pca": rng.normal(size=(60, 2)) + labels[:, None],
        "map_pca_share": np.array([0.41, 0.22]),
        "map_method": np.array("t-SNE"),
        "map_points": rng.normal(size=(60, 2)),
    }


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
    """A function that writes the directory of a run: its name, what is left out, and overrides of the config."""

    def make(name="run", *, variant="hamjepa", seed=0, split=True, without=(), config=None, num_records=60):
        rng, directory = np.random.default_rng(seed), tmp_path_factory.mktemp("runs") / name
        (directory / "evaluation").mkdir(parents=True)
        terms = ("prediction", "budget_q", "logdet_q") if split else ("prediction", "sigreg")
        settings = {
            "name": "digits",
            "variant": variant,
            "data": {"name": "digits", "batch_size": 256},
            "model": {"split_qp": split},
            "objective": {"regularizers": {"budget_q": {"name": "mean_square", "on": "q", "weight": 0.2}}},
            "train": {"seed": seed},
        }
        files = {
            "config.json": json.dumps(settings | (config or {})),
            "metrics.jsonl": "".join(f"{json.dumps(r)}\n" for r in log(rng, terms=terms, num_records=num_records)),
            "evaluation/metrics.json": json.dumps(evaluation(rng, variant=variant, seed=seed, split=split)),
            "evaluation/diagnostics.json": json.dumps(diagnosis(rng, variant=variant, seed=seed, flow=split)),
        }
        for path, text in files.items():
            if path not in without:
                (directory / path).write_text(text)
        if "evaluation/pictures.npz" not in without:
            np.savez(directory / "evaluation" / "pictures.npz", **pictures(rng))
        if "views.png" not in without:
            Image.fromarray(rng.integers(0, 255, (40, 60, 3)).astype(np.uint8)).save(directory / "views.png")
        return directory

    return make
