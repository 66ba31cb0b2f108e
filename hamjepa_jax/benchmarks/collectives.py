"""What do the devices say to each other in a training step, and how far does that scale?

    python -m hamjepa_jax.benchmarks.collectives --json=results/collectives.json
    python -m hamjepa_jax.benchmarks.collectives --topology=v5e:2x4 --json=results/collectives.json

Nothing is trained. The steps of configs/cifar100.py and configs/imagenet100.py are compiled for eight virtual devices,
and the collectives are read out of the compiled programs. With --topology they are also compiled for the named TPU
slice, which takes `pip install "jax[tpu]"` but no TPU. The current directory is that of the repository.

From the numbers of the last compiler, and the operations of a step, a model tells how long a step takes on more
devices (see `scaling.py`); --figure draws it.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.progress import track

from hamjepa_jax import build_data, sharding
from hamjepa_jax.benchmarks import command_line, hlo, scaling, shipped
from hamjepa_jax.build_views import Dataset
from hamjepa_jax.data.loading import CanvasBatch, CroppedBatch
from hamjepa_jax.state import TrainState
from hamjepa_jax.step import make_loss, make_train_step

NUM_DEVICES = 8
# How many images lie on the device where they do; no number in the tables depends on it.
RESIDENT_IMAGES = 50_000


class Case(NamedTuple):
    """A training step.

    Attributes:
        config: name of a file in configs.
        variant: its variant.
        data: devices along the axis `data`.
        fsdp: devices along the axis `fsdp`.
    """

    config: str
    variant: str
    data: int
    fsdp: int


CASES = (
    Case("cifar100", "hamjepa", 8, 1),
    Case("cifar100", "hamjepa", 1, 8),
    Case("cifar100", "sigreg", 8, 1),
    Case("imagenet100", "hamjepa", 8, 1),
    Case("imagenet100", "sigreg", 8, 1),
    Case("imagenet100", "hamjepa_multicrop", 8, 1),
)


def abstract_data(config: Any, mesh: Mesh, *, resident: bool) -> tuple[Dataset | None, Any]:
    """Shapes and placement of the data set and of a batch, see `build_views.make_views`.

    Args:
        config: the config's group `data`.
        mesh: the device mesh.
        resident: whether the data set lies on the devices.

    Returns:
        What stands for the data set, or None, and what stands for the batch.
    """

    def array(where: Any, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    channels, canvas = len(config.mean), config.canvas_size
    split = partial(array, sharding.batch_sharding(mesh))
    examples = partial(split, jnp.int32, config.batch_size)
    if resident:
        copied = partial(array, sharding.replicated(mesh))
        images = copied(jnp.uint8, RESIDENT_IMAGES, canvas, canvas, channels)
        return Dataset(images, copied(jnp.int32, RESIDENT_IMAGES, 2)), examples()
    if canvas is not None:
        return None, CanvasBatch(examples(), split(jnp.uint8, config.batch_size, canvas, canvas, channels), examples(2))
    views = [(count, size) for count, size, _ in build_data.kinds_of_views(config)]
    crops = tuple(split(jnp.uint8, config.batch_size, count, size, size, channels) for count, size in views)
    return None, CroppedBatch(examples(), crops, tuple(examples(count, 4) for count, _ in views), examples(2))


def lower(
    train_step: Callable[..., Any], abstract_state: TrainState, shardings: TrainState, mesh: Mesh, data: tuple[Any, Any]
) -> jax.stages.Lowered:
    """Lowers a training step as the training loop jits it, from shapes alone.

    Args:
        train_step: what `step.make_train_step` returns.
        abstract_state: shapes and types of the state.
        shardings: its placement.
        mesh: the device mesh.
        data: what `abstract_data` returns.

    Returns:
        The step, to be compiled.
    """
    everywhere = sharding.replicated(mesh)

    def placed(leaf: jax.ShapeDtypeStruct, where: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    state = jax.tree.map(placed, abstract_state, shardings)
    key = placed(jax.eval_shape(jax.random.key, 0), everywhere)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, everywhere))
    return jitted.lower(state, key, number, *data)


def floating_point_operations(jaxpr: Any) -> int:
    """The operations of the matrix products and convolutions of a traced function, two for a multiplication and a sum.

    Args:
        jaxpr: the traced function; of a loop without a known length one round is counted, and of a branch every case.

    Returns:
        Their number.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inner = sum(map(floating_point_operations, jax.extend.core.jaxprs_in_params(params)))
        total += inner * (params["length"] if name == "scan" else 1)
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * int(np.prod([left[axis] for axis in contracted]))
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            # Where the input is stretched, as in the gradient of a convolution with a stride, the rest of it is zero.
            stretch = int(np.prod(params["lhs_dilation"]))
            total += 2 * equation.outvars[0].aval.size * (kernel.size // features) // stretch
    return total


def count(collectives: Sequence[hlo.Collective], params: Any) -> list[dict[str, Any]]:
    """Sums collectives up by what they are for.

    Args:
        collectives: what `hlo.collectives` returned.
        params: the parameters, or their shapes.

    Returns:
        Rows {"kind", "what", "types", "arrays", "bytes"}: `what` is "parameters" (gathered), "gradients" (of kernels)
        or "statistics" (all else: those of batch normalisation, whose sums in the backward pass are also the gradients
        of its scales and biases, other biases, and those of the objective). What runs in a loop is counted every time.
    """
    kernels = {_shape(leaf.shape) for leaf in jax.tree.leaves(params) if leaf.ndim >= 2}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for collective in collectives:
        for array in collective.results:
            what = "statistics"
            if len(array.shape) >= 2 and _shape(array.shape) in kernels:
                what = "gradients" if collective.kind in ("all-reduce", "reduce-scatter") else "parameters"
            empty = {"kind": collective.kind, "what": what, "types": [], "arrays": 0, "bytes": 0}
            row = rows.setdefault((collective.kind, what), empty)
            row["types"] = sorted({*row["types"], array.dtype})
            row["arrays"] += collective.times
            row["bytes"] += collective.times * array.num_bytes
    return [rows[key] for key in sorted(rows)]


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    # Compilers transpose and flatten; axes of length 1 may be gone.
    return tuple(sorted(length for length in shape if length > 1))


def measure(case: Case, devices: Sequence[jax.Device], compiler: str, folder: Path) -> dict[str, Any]:
    """Compiles a case and counts its collectives.

    Args:
        case: the case.
        devices: the devices, which need not exist.
        compiler: what to call them.
        folder: where images are made that stand for the data set.

    Returns:
        The case, the compiler, the devices, the bytes of the parameters, the images in a
        batch, the views of an image, the operations of a step, the `collectives` that are launched and `rows`, see
        `count`.
    """
    config, experiment = shipped.load(case.config, case.variant, folder)
    mesh = sharding.make_mesh(data=case.data, fsdp=case.fsdp, devices=devices)
    state = jax.eval_shape(experiment.initial_state, jax.eval_shape(jax.random.key, 0))
    loss = make_loss(
        encoder=experiment.encoder,
        views=experiment.views,
        objective=experiment.objective,
        microbatches=config.train.microbatches,
    )
    train_step = make_train_step(
        loss=sharding.with_whole_parameters(loss, mesh),
        optimizer=experiment.optimizer,
        terms=experiment.objective.terms,
        max_skipped_steps=0,
    )
    data = abstract_data(config.data, mesh, resident=config.data.canvas_size is not None)
    lowered = lower(train_step, state, sharding.state_sharding(mesh, state), mesh, data)
    found = hlo.collectives(lowered.compile().as_text())
    traced = jax.make_jaxpr(train_step)(state, jax.eval_shape(jax.random.key, 0), jnp.int32(0), *data)
    return {
        **case._asdict(),
        "compiler": compiler,
        "devices": len(devices),
        "parameter_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params)),
        "batch_size": config.data.batch_size,
        "views": config.data.num_global_views + config.data.num_local_views,
        "operations": floating_point_operations(traced.jaxpr),
        "collectives": sum(collective.times for collective in found),
        "rows": count(found, state.params),
    }


def markdown_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """The collectives as a Markdown table.

    Args:
        measured: what `measure` returned.

    Returns:
        The table.
    """
    columns = ("mesh", "compiler", "launched", "parameters, MB", "collective", "of what", "types", "arrays", "MB")
    lines = [f"| step | {' | '.join(columns)} |", "| --- | --- | --- | ---: | ---: | --- | --- | --- | ---: | ---: |"]
    for step in measured:
        first = (
            f"{step['config']}:{step['variant']}",
            f"{step['data']} × {step['fsdp']}",
            step["compiler"],
            str(step["collectives"]),
            f"{step['parameter_bytes'] / 1e6:.2f}",
        )
        for row in step["rows"]:
            cells = (row["kind"], row["what"], ", ".join(row["types"]), str(row["arrays"]), f"{row['bytes'] / 1e6:.3f}")
            lines.append(f"| {' | '.join((*first, *cells))} |")
            first = ("",) * len(first)
    return "\n".join(lines)


def main() -> None:
    """Compiles every case, prints both tables, writes the JSON and draws the figure."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--topology", help="a TPU slice of eight chips to compile for as well, such as v5e:2x4")
    parser.add_argument("--figure", type=Path, help="where the modelled scaling is drawn")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
    # What was compiled for a TPU cannot be read back without one.
    jax.config.update("jax_enable_compilation_cache", False)
    compilers = {"CPU": jax.devices()}
    if options.topology:
        compilers[f"TPU {options.topology}"] = topology_devices(options.topology)
        if len(compilers[f"TPU {options.topology}"]) != NUM_DEVICES:
            parser.error(f"--topology: must have {NUM_DEVICES} chips, such as v5e:2x4")

    with tempfile.TemporaryDirectory() as folder:
        cases = [(case, devices, name, Path(folder)) for name, devices in compilers.items() for case in CASES]
        measured = [measure(*case) for case in track(cases, description="steps")]
    print(markdown_table(measured))
    last = list(compilers)[-1]
    modelled = scaling.model([step for step in measured if step["compiler"] == last and step["fsdp"] == 1])
    print(scaling.markdown_table(modelled))
    compiler = {"libtpu": version("libtpu")} if options.topology else {}
    command_line.write_json(options.json, {"compiler": compiler, "steps": measured, "model": modelled})
    if options.figure is not None:
        scaling.draw(modelled, options.figure)


def topology_devices(name: str) -> list[jax.Device]:
    """The chips of a TPU slice that need not exist.

    Args:
        name: its name, such as `v5e:2x4`.

    Returns:
        The chips.
    """
    from jax.experimental import topologies

    # Without these, the compiler asks the machine about its TPU, for minutes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)


if __name__ == "__main__":
    main()
