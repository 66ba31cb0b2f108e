"""What does HamJEPA's flow lose in float32 and in bfloat16, by dimension and number of steps?

    python -m hamjepa_jax.benchmarks.precision --seeds=3 --json=results/precision.json

The energy and the step are the published ones, its weights are fresh, and the states are standard normal. What the
arithmetic of a precision does is measured in float64.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from hamjepa_jax.benchmarks import command_line
from hamjepa_jax.dynamics import energies, geometry
from hamjepa_jax.dynamics.integrators import integrate
from hamjepa_jax.dynamics.predictors import split_state

DIMENSIONS = (8, 64, 256, 1024)
NUM_STEPS = (2, 8, 32)
PRECISIONS = ("float64", "float32", "bfloat16")
STEP_SIZE = 0.05
RESIDUAL_SCALE = 0.02
ENERGY = energies.separable_mlp(hidden_dim=256, depth=2, base_coeff=0.1)
NUM_STATES = 256
# Column of the table → the precision and the measurement in it.
COLUMNS = {
    "defect, float64": ("float64", "symplectic_defect"),
    "defect, float32": ("float32", "symplectic_defect"),
    "defect, bfloat16": ("bfloat16", "symplectic_defect"),
    "log det, float32": ("float32", "log_abs_det"),
    "log det, bfloat16": ("bfloat16", "log_abs_det"),
    "p error, float32": ("float32", "p_displacement_error"),
    "p error, bfloat16": ("bfloat16", "p_displacement_error"),
    "p error, float32 cast to bfloat16": ("float32", "p_displacement_error_after_cast"),
}


def root_mean_square(x: jax.Array) -> jax.Array:
    """The root of the mean square of all entries."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def measure(seed: int, dim: int, num_steps: int, precision: str) -> dict[str, Any]:
    """Compares the flow in a precision with the flow in float64.

    Args:
        seed: seed of the weights and the states.
        dim: number d of positions.
        num_steps: number of leapfrog steps.
        precision: name of the type that the flow computes in.

    Returns:
        The arguments; `symplectic_defect` and `log_abs_det` (without its sign) of one state; and
        `p_displacement_error`, the root mean square error of p' over that of p' − p, also with the result of the flow
        rounded to bfloat16 (`…_after_cast`).
    """
    params_key, state_key = jax.random.split(jax.random.key(seed))
    params = ENERGY.init(params_key, dim)
    # What an encoder in bfloat16 gives.
    z = jax.random.normal(state_key, (NUM_STATES, 2 * dim)).astype(jnp.bfloat16).astype(jnp.float64)

    def flow(z: jax.Array, dtype: str) -> jax.Array:
        """The flow in a type, between states in float64."""
        narrow_params, narrow_z = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, z))
        q, p = integrate(
            ENERGY,
            narrow_params,
            *split_state(narrow_z),
            step_size=STEP_SIZE,
            num_steps=num_steps,
            residual_scale=RESIDUAL_SCALE,
        )
        return jnp.concatenate([q, p], axis=-1).astype(jnp.float64)

    @jax.jit
    def measurements(z: jax.Array) -> dict[str, jax.Array]:
        exact, rounded = flow(z, "float64"), flow(z, precision)
        displacement = root_mean_square(split_state(exact - z)[1])
        cast = rounded.astype(jnp.bfloat16).astype(jnp.float64)
        return {
            "symplectic_defect": geometry.symplectic_defect(lambda z: flow(z, precision), z[0]),
            "log_abs_det": jnp.abs(geometry.log_abs_det_jacobian(lambda z: flow(z, precision), z[0])),
            "p_displacement_error": root_mean_square(split_state(rounded - exact)[1]) / displacement,
            "p_displacement_error_after_cast": root_mean_square(split_state(cast - exact)[1]) / displacement,
        }

    found = {name: float(value) for name, value in measurements(z).items()}
    return {"seed": seed, "dim": dim, "num_steps": num_steps, "precision": precision} | found


def markdown_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The measurements as a Markdown table, mean ± standard deviation over the seeds.

    Args:
        runs: what `measure` returned, at least two seeds of every case.

    Returns:
        The table.
    """
    lines = [f"| d | steps | {' | '.join(COLUMNS)} |", f"| ---: | ---: |{' ---: |' * len(COLUMNS)}"]
    for dim, num_steps in sorted({(run["dim"], run["num_steps"]) for run in runs}):
        cells = []
        for precision, name in COLUMNS.values():
            case = {"dim": dim, "num_steps": num_steps, "precision": precision}
            values = [run[name] for run in runs if case.items() <= run.items()]
            cells.append(f"{np.mean(values):.1e} ± {np.std(values, ddof=1):.0e}")
        lines.append(f"| {dim} | {num_steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures every case and seed, prints the table and writes the JSON."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on (default: 3)")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: must be at least 2, for a standard deviation")

    jax.config.update("jax_enable_x64", True)
    cases = [
        (seed, dim, num_steps, precision)
        for dim in DIMENSIONS
        for num_steps in NUM_STEPS
        for precision in PRECISIONS
        for seed in range(options.seeds)
    ]
    runs = [measure(*case) for case in track(cases, description="cases")]
    print(markdown_table(runs))
    command_line.write_json(options.json, {"runs": runs})


if __name__ == "__main__":
    main()
