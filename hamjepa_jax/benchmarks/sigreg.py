"""How long do SIGReg and the other statistics take, by samples, dimension, directions and knots?

    python -m hamjepa_jax.benchmarks.sigreg --json=results/sigreg.json
    python -m hamjepa_jax.benchmarks.sigreg --against=torch

Value and gradient of each, of two views of standard normal embeddings. With --against=torch, SIGReg in PyTorch
(`torch_step.py`) takes turns with ours. Beside a time stands its floor: that of the operations of its matrix products
at the rate of a large one, or of reading what it is given and writing the gradient at the rate of a copy, whichever is
longer; and the memory that it takes besides, in arrays of projections (samples × directions).
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import track

from hamjepa_jax import environment
from hamjepa_jax.benchmarks import command_line, timing
from hamjepa_jax.benchmarks.beside_torch import TorchStep, parse, ratio_to_torch
from hamjepa_jax.benchmarks.collectives import floating_point_operations
from hamjepa_jax.stats import floors, multivariate, redundancy
from hamjepa_jax.stats.slicing import random_directions, sigreg, sliced
from hamjepa_jax.stats.univariate import TESTS

VIEWS = 2


class Case(NamedTuple):
    """A statistic and its sizes.

    Attributes:
        statistic: its name.
        samples: samples N of a view.
        dim: dimension D.
        directions: directions K, or columns of the projection of a covariance; 0 where there are none.
        points: knots T, or 0.
    """

    statistic: str
    samples: int = 512
    dim: int = 2048
    directions: int = 1024
    points: int = 0


SIGREG = Case("sigreg", points=17)
SIGREG_CASES = (
    SIGREG,
    SIGREG._replace(directions=64, points=9),
    *(SIGREG._replace(samples=samples) for samples in (128, 2048)),
    *(SIGREG._replace(dim=dim) for dim in (256, 1024)),
    *(SIGREG._replace(directions=directions) for directions in (64, 256, 4096)),
    *(SIGREG._replace(points=points) for points in (9, 33)),
)
OTHER_CASES = (
    *(Case(name) for name in TESTS if name != "epps_pulley"),
    Case("bhep", directions=0),
    Case("vicreg", directions=0),
    Case("barlow_twins", directions=0),
    Case("variance_floor", directions=0),
    Case("covariance_floor", directions=128),
)


def statistic(case: Case) -> Callable[[jax.Array, jax.Array | None], jax.Array]:
    """The function of a case.

    Args:
        case: the case.

    Returns:
        Embeddings (V, N, D) and directions (D, K) → a scalar.
    """
    if case.statistic == "sigreg":
        return partial(sigreg, num_points=case.points)
    if case.statistic in TESTS:
        return partial(sliced, test=TESTS[case.statistic])
    whole = {
        "bhep": lambda z: multivariate.bhep(z, bandwidth=0.05).mean(),
        "vicreg": lambda z: redundancy.vicreg(_pooled(z), variance_weight=25.0, covariance_weight=2.0)[0],
        "barlow_twins": lambda z: redundancy.barlow_twins(z, off_diagonal_weight=5e-3)[0],
        "variance_floor": lambda z: floors.variance_floor(z, std_floor=2.0)[0],
    }
    if case.statistic in whole:
        return lambda z, _: whole[case.statistic](z)
    return lambda z, projection: floors.covariance_floor(z, projection, logdet_floor=1.0)[0]


def _pooled(z_VxNxD: jax.Array) -> jax.Array:
    return z_VxNxD.reshape(-1, z_VxNxD.shape[-1])


def measure(case: Case, options: argparse.Namespace, rates: Mapping[str, float]) -> dict[str, Any]:
    """Times value and gradient.

    Args:
        case: the case.
        options: those of the command line.
        rates: `operations` and `bytes`, a second.

    Returns:
        The case, {"seconds", "torch_seconds", "floor", "temporary_bytes"}; `torch_seconds` is None but for SIGReg with
        PyTorch.
    """
    z_key, directions_key = jax.random.split(jax.random.key(0))
    z = jax.random.normal(z_key, (VIEWS, case.samples, case.dim))
    directions = random_directions(directions_key, case.dim, case.directions) if case.directions else None
    if case.statistic == "covariance_floor":
        directions = floors.random_projection(directions_key, case.dim, case.directions)
    function = jax.value_and_grad(statistic(case))
    compiled = jax.jit(function).lower(z, directions).compile()
    functions: list[Callable[[], Any]] = [lambda: jax.block_until_ready(compiled(z, directions))]
    if options.against == "torch" and case.statistic == "sigreg":
        sizes = {"batch_size": case.samples, "dim": case.dim, "directions": case.directions, "points": case.points}
        arguments = [f"--{name}={size}" for name, size in (sizes | {"threads": options.cores}).items()]
        if jax.default_backend() == "gpu":
            arguments.append("--device=cuda")
        functions.append(TorchStep(options.torch_python, "sigreg_alone", arguments))
    with environment.reusing_memory():
        seconds = timing.alternate(functions, options.repeats)
    for process in functions[1:]:
        process.close()
    operations = floating_point_operations(jax.make_jaxpr(function)(z, directions).jaxpr)
    num_bytes = 2 * z.nbytes + (0 if directions is None else directions.nbytes)
    return {
        **case._asdict(),
        "seconds": seconds[0].tolist(),
        "torch_seconds": seconds[1].tolist() if len(seconds) > 1 else None,
        "floor": max(operations / rates["operations"], num_bytes / rates["bytes"]),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def markdown_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """The times as a Markdown table.

    Args:
        measured: what `measure` returned.

    Returns:
        The table; times are medians.
    """
    lines = [
        "| statistic | N | D | K | T | ms | floor, ms | ratio | PyTorch, ms | ratio | memory, N·K floats |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in measured:
        ours, floor, torch, memory = np.median(row["seconds"]), row["floor"], "| | |", ""
        if row["torch_seconds"] is not None:
            torch = f"| {1e3 * np.median(row['torch_seconds']):.1f} | {ratio_to_torch(row):.2f} |"
        if row["directions"]:
            memory = f"{row['temporary_bytes'] / (4 * VIEWS * row['samples'] * row['directions']):.1f}"
        sizes = (str(row[name] or "") for name in ("samples", "dim", "directions", "points"))
        lines.append(
            f"| {row['statistic']} | {' | '.join(sizes)} "
            f"| {1e3 * ours:.1f} | {1e3 * floor:.2f} | {ours / floor:.1f} {torch} {memory} |"
        )
    return "\n".join(lines)


def _name(row: Mapping[str, Any]) -> str:
    return "N={samples} D={dim} K={directions} T={points}".format(**row)


def main() -> None:
    """Measures every case, prints the table and writes the JSON."""
    options = parse(command_line.timing_parser(__doc__))
    timing.use_cores(options.cores)
    environment.compute_in_the_calling_thread()
    rates = timing.rates()
    cases = track((*SIGREG_CASES, *OTHER_CASES), description="statistics")
    measured = [measure(case, options, rates) for case in cases]
    print(f"{rates['operations'] / 1e9:.0f} GFLOP/s, {rates['bytes'] / 1e9:.0f} GB/s")
    print(markdown_table(measured))
    results = {"rates": rates, "cases": measured}
    if options.against == "torch":
        compared = [row for row in measured if row["torch_seconds"] is not None]
        results["ratio_to_torch"] = {_name(row): ratio_to_torch(row) for row in compared}
    command_line.write_json(options.json, results)


if __name__ == "__main__":
    main()
