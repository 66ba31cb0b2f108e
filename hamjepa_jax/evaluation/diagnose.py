"""The diagnosis of a run: is the trained predictor symplectic, what does it learn, how sensitive is it to its steps."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from hamjepa_jax import build_objective, distributed
from hamjepa_jax.atomic_files import plain, write_json
from hamjepa_jax.build import Experiment
from hamjepa_jax.errors import UserError, require
from hamjepa_jax.evaluation.diagnostics import NUM_APPLICATIONS, Flow, Trained, diagnostics
from hamjepa_jax.evaluation.pairs import held_out_views
from hamjepa_jax.state import TrainState

# Of how many held-out states there are Jacobians and roll-outs.
NUM_JACOBIANS, NUM_ROLLOUTS = 4, 32
INVERTIBLE = (build_objective.FLOW, "rotation", "identity")
# The number of neighbours that the table shows.
SHOWN_NEIGHBOURS = 10


def can_diagnose(config: ConfigDict) -> bool:
    """Whether there is anything to diagnose: embeddings that are states [q ; p], and a CPU for double precision.

    Args:
        config: the whole config.

    Returns:
        True if `diagnose` does not refuse.
    """
    return config.model.split_qp and _has_cpu()


def diagnose(
    config: ConfigDict, experiment: Experiment, state: TrainState, *, directory: Path, console: Console
) -> dict[str, Any] | None:
    """Diagnoses the trained predictor on held-out states; prints a table and writes the numbers.

    The primary process does it alone while the others wait.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        state: the trained state, on one device of this process.
        directory: where diagnostics.json goes.
        console: where the table is shown.

    Returns:
        What diagnostics.json holds, see docs/diagnostics.md; None in the other processes.

    Raises:
        UserError: if embeddings are no states, jax has no CPU, or too many images cannot be read.
        StorageError: if the file cannot be written.
    """
    require(
        config.model.split_qp,
        "model.split_qp",
        "must be true for a diagnosis, which is about maps of states [q ; p]; this run's embedding is no state",
    )
    if not _has_cpu():
        raise UserError("JAX_PLATFORMS: must name cpu besides, such as tpu,cpu, for a diagnosis in double precision")
    found: list[dict[str, Any]] = []
    distributed.on_primary(lambda: found.append(_diagnose(config, experiment, state, directory, console)))
    return found[0] if found else None


def _has_cpu() -> bool:
    try:
        return bool(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return False


def _diagnose(
    config: ConfigDict, experiment: Experiment, state: TrainState, directory: Path, console: Console
) -> dict[str, Any]:
    trained = trained_predictor(config, experiment, state)
    with console.status("diagnosing the predictor"):
        ((z0, z1),) = held_out_views(config, experiment, [state], console)
        measured = diagnostics(
            trained,
            z0,
            z1,
            match=config.objective.prediction.match,
            p_weight=config.objective.prediction.p_weight,
            num_jacobians=NUM_JACOBIANS,
            num_rollouts=NUM_ROLLOUTS,
        )
    flow = trained.flow
    about = {
        "step": int(state.step),
        "seed": config.train.seed,
        "variant": config.variant,
        "predictor": config.predictor.name,
        "energy": config.predictor.energy if flow else None,
        "scheme": config.predictor.scheme if flow else None,
        "step_size": config.predictor.step_size if flow else None,
        "num_steps": config.predictor.num_steps if flow else None,
        "residual_scale": trained.residual_scale if flow else None,
        "state_dim": z0.shape[-1],
        "num_states": len(measured["log_abs_det"]["float64"]),
        "num_rollouts": len(measured["reversibility"]["float64"]),
        "num_examples": len(z0),
        "data": "test",
    }
    result = plain(about | measured)
    write_json(directory / "diagnostics.json", result)
    print_table(result, console)
    return result


def trained_predictor(config: ConfigDict, experiment: Experiment, state: TrainState) -> Trained:
    """The predictor of a run, and what is known of it.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        state: the trained state.

    Returns:
        The predictor with its parameters.
    """
    settings, flow = config.predictor, None
    if settings.name == build_objective.FLOW:
        flow = Flow(build_objective.energy(settings), settings.step_size, settings.num_steps, settings.scheme)
    return Trained(
        experiment.predictor,
        state.params["predictor"],
        residual_scale=_residual_scale(config, experiment, int(state.step)),
        invertible=settings.name in INVERTIBLE,
        flow=flow,
    )


def _residual_scale(config: ConfigDict, experiment: Experiment, step: int) -> float:
    """That of the last step made."""
    epoch = max(step - 1, 0) // experiment.steps_per_epoch + 1
    return config.predictor.residual_scale * min(1.0, epoch / max(config.predictor.residual_ramp_epochs, 1))


def print_table(result: Mapping[str, Any], console: Console) -> None:
    """Prints the main numbers as one aligned table.

    Args:
        result: what diagnostics.json holds.
        console: where to print.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left", title_style="italic")
    table.title = f"{result['variant']}, step {result['step']}, seed {result['seed']}: the predictor"
    table.add_column("", no_wrap=True)
    for column in ("float64", "float32"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    stretches = result["singular_values"]
    largest, smallest = (_median(stretches[name]) for name in ("largest", "smallest"))
    singular = smallest <= result["state_dim"] * np.finfo(np.float64).eps * largest
    for name, key, comment in (
        ("log|det J|", "log_abs_det", "J is singular" if singular else "0 if symplectic"),
        ("max|JᵀΩJ − Ω|", "symplectic_defect", "0 if symplectic"),
        ("max|RΦRΦz − z|", "reversibility", "0 if reversible"),
        ("max|Φ⁻¹Φz − z|", "inverse", "0 if undone"),
    ):
        if result[key] is not None:
            table.add_row(name, *(_shown(_median(result[key][dtype])) for dtype in ("float64", "float32")), comment)
    table.add_row("smallest singular value", _shown(smallest), "", "of J")
    table.add_row("largest singular value", _shown(largest), "", "of J")
    rollout, applications = result["rollout"], f"after {NUM_APPLICATIONS:,} applications"
    if rollout["energy"] is not None:
        table.add_row("relative energy drift", _shown(rollout["energy"]["median"][-1]), "", applications)
    table.add_row("‖z‖ / ‖z₀‖", _shown(rollout["norm"]["median"][-1]), "", applications)
    if result["residual_force_ratio"] is not None:
        table.add_row("residual / base force", "", _shown(result["residual_force_ratio"]), "learned part to the rest")
    errors, neighbours = result["prediction"], result["neighbourhood"]
    compared = f"identity {_shown(errors['identity'])}, mean {_shown(errors['mean'])}"
    table.add_row("prediction error", "", _shown(errors["error"]), compared)
    if SHOWN_NEIGHBOURS in neighbours["k"]:
        at = neighbours["k"].index(SHOWN_NEIGHBOURS)
        kept, chance = (_shown(neighbours[name][at]) for name in ("overlap", "chance"))
        table.add_row(f"{SHOWN_NEIGHBOURS} neighbours kept", "", kept, f"by chance {chance}")
    console.print(table)
    counts = f"{result['num_states']} for J and {result['num_rollouts']} for repeated Φ"
    console.print(f"{_name(result)}\nmedians; {result['num_examples']} test images, of which {counts}")


def _name(result: Mapping[str, Any]) -> str:
    if result["energy"] is None:
        return result["predictor"]
    return (
        f"{result['predictor']} of {result['energy']}, {result['scheme']}, τ = {result['step_size']:g}, "
        f"K = {result['num_steps']}, s = {result['residual_scale']:g}"
    )


def _median(values: list[float | None]) -> float:
    finite = [value for value in values if value is not None]
    return float(np.median(finite)) if finite else math.nan


def _shown(value: float | None) -> str:
    return "not finite" if value is None or math.isnan(value) else f"{value:.3g}"
