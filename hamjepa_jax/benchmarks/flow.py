"""How long does a Hamiltonian flow take, by dimension, steps and scheme?

    python -m hamjepa_jax.benchmarks.flow --json=results/flow.json

A separable energy with an MLP of two hidden layers of 256 units carries the states of a batch forward and, others, back
again, as in a training step: value and gradient with respect to states and parameters. Beside a time stands its floor:
that of the operations of the matrix products at the rate of a large one, or of reading the states and writing their
gradient at the rate of a copy, whichever is longer. What a floor leaves out is the GELU of the energy, its first
derivative in the force, and its second in the gradient.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from hamjepa_jax import environment
from hamjepa_jax.benchmarks import command_line, timing
from hamjepa_jax.benchmarks.collectives import floating_point_operations
from hamjepa_jax.dynamics.energies import Params, separable_mlp
from hamjepa_jax.dynamics.predictors import hamiltonian_flow

HIDDEN_DIM, DEPTH, BASE_COEFF = 256, 2, 0.1
STEP_SIZE = 0.05


class Case(NamedTuple):
    """A flow and what it carries.

    Attributes:
        dim: degrees of freedom d; a state has 2d coordinates.
        num_steps: steps K.
        batch_size: states in each direction.
        scheme: the integrator.
    """

    dim: int = 1024
    num_steps: int = 2
    batch_size: int = 64
    scheme: str = "leapfrog"


CASES = (
    Case(),
    *(Case(dim=dim) for dim in (64, 256, 4096)),
    *(Case(num_steps=num_steps) for num_steps in (1, 4, 8, 32)),
    Case(batch_size=512),
    *(Case(scheme=scheme) for scheme in ("explicit_euler", "yoshida4", "implicit_midpoint")),
)


def measure(case: Case, options: argparse.Namespace, rates: Mapping[str, float]) -> dict[str, Any]:
    """Times value and gradient.

    Args:
        case: the case.
        options: those of the command line.
        rates: `operations` and `bytes`, a second.

    Returns:
        The case, {"seconds", "operations", "floor", "temporary_bytes"}.
    """
    energy = separable_mlp(hidden_dim=HIDDEN_DIM, depth=DEPTH, base_coeff=BASE_COEFF)
    flow = hamiltonian_flow(energy, step_size=STEP_SIZE, num_steps=case.num_steps, scheme=case.scheme)
    params_key, states_key = jax.random.split(jax.random.key(0))
    params = flow.init(params_key, 2 * case.dim)
    z = jax.random.normal(states_key, (2, case.batch_size, 2 * case.dim))

    def loss(params: Params, z: jax.Array) -> jax.Array:
        carried = [
            flow.apply(params, states, direction=direction) for states, direction in zip(z, (1, -1), strict=True)
        ]
        return jnp.mean(jnp.square(jnp.stack(carried)))

    function = jax.value_and_grad(loss, argnums=(0, 1))
    compiled = jax.jit(function, compiler_options=environment.compiler_options()).lower(params, z).compile()
    with environment.reusing_memory():
        seconds = timing.alternate([lambda: jax.block_until_ready(compiled(params, z))], options.repeats)[0]
    operations = floating_point_operations(jax.make_jaxpr(function)(params, z).jaxpr)
    return {
        **case._asdict(),
        "seconds": seconds.tolist(),
        "operations": operations,
        "floor": max(operations / rates["operations"], 2 * z.nbytes / rates["bytes"]),
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
        "| scheme | d | K | states | ms | floor, ms | ratio | intermediate results, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in measured:
        seconds, floor = np.median(row["seconds"]), row["floor"]
        lines.append(
            f"| {row['scheme']} | {row['dim']} | {row['num_steps']} | {2 * row['batch_size']} "
            f"| {1e3 * seconds:.2f} | {1e3 * floor:.2f} | {seconds / floor:.1f} | {row['temporary_bytes'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures every case, prints the table and writes the JSON."""
    options = command_line.timing_parser(__doc__).parse_args()
    timing.use_cores(options.cores)
    environment.compute_in_the_calling_thread()
    rates = timing.rates()
    measured = [measure(case, options, rates) for case in track(CASES, description="flows")]
    print(f"{rates['operations'] / 1e9:.0f} GFLOP/s, {rates['bytes'] / 1e9:.0f} GB/s")
    print(markdown_table(measured))
    command_line.write_json(options.json, {"rates": rates, "cases": measured})


if __name__ == "__main__":
    main()
