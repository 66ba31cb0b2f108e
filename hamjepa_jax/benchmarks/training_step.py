"""How long does a training step take, where does the time go, and how long does PyTorch take?

    python -m hamjepa_jax.benchmarks.training_step --json=results/training_step.json
    python -m hamjepa_jax.benchmarks.training_step --torch=PYTHON --batch_size=512 --dtype=bfloat16

The steps of configs/cifar100.py, on images of noise that lie on the device. --torch names a Python that has PyTorch,
if this one has not; the same model and losses in PyTorch (`torch_step.py`) then take turns with ours, on a GPU with the
channels last and compiled. The current directory is that of the repository.

The floor of a part is the time of its operations at the rate of a large matrix product, or of its bytes at the rate of
a copy, whichever is longer. The operations of a convolution are those of adding tap by tap; the matrix products that
replace it on a CPU need fewer, so that its ratio may be below one.
"""

import argparse
import resource
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from hamjepa_jax import environment
from hamjepa_jax.benchmarks import command_line, shipped, timing
from hamjepa_jax.benchmarks.beside_torch import TorchStep, add_option
from hamjepa_jax.benchmarks.step_parts import Step, parts

VARIANTS = ("hamjepa", "sigreg")


def torch_arguments(options: argparse.Namespace) -> list[str]:
    """How the step in PyTorch is called, so that it does the same as ours.

    Args:
        options: those of the command line.

    Returns:
        The arguments of `torch_step`.
    """
    arguments = [f"--batch_size={options.batch_size}", f"--threads={options.cores}"]
    if options.dtype == "bfloat16":
        arguments.append("--bfloat16")
    if jax.default_backend() == "gpu":
        arguments += ["--device=cuda", "--channels_last", "--compile"]
    return arguments


def measure(variant: str, options: argparse.Namespace, rates: Mapping[str, float], folder: Path) -> dict[str, Any]:
    """Times the step of a variant, that of PyTorch, and the parts of ours.

    Args:
        variant: variant of configs/cifar100.py.
        options: those of the command line.
        rates: `operations` and `bytes`, a second.
        folder: where images are made that are there only to be counted.

    Returns:
        {"variant", "batch_size", "dtype", "compile_seconds", "temporary_bytes", "peak_bytes", "seconds", "operations",
        "torch_seconds", "parts"}: `peak_bytes` are those of the process, so far; `torch_seconds` is None without
        PyTorch; `parts` are {"seconds", "floor"} by name.
    """
    config, experiment = shipped.load("cifar100", variant, folder, batch_size=options.batch_size, dtype=options.dtype)
    step = Step(config, experiment)
    functions: list[Callable[[], Any]] = [step]
    if options.torch is not None:
        functions.append(TorchStep(options.torch, variant, torch_arguments(options)))
    with threadpool_limits(1, user_api="blas"), environment.reusing_memory():
        seconds = timing.alternate(functions, options.repeats)
        for function in functions[1:]:
            function.close()
        measured = {}
        for name, part in parts(step).items():
            run = lambda part=part: jax.block_until_ready(part.run(*part.arguments))  # noqa: E731
            floor = max(part.operations / rates["operations"], part.num_bytes / rates["bytes"])
            measured[name] = {
                "seconds": timing.alternate([run], options.repeats)[0].tolist(),
                "operations": part.operations,
                "bytes": part.num_bytes,
                "floor": floor,
            }
    return {
        "variant": variant,
        "batch_size": options.batch_size,
        "views": options.batch_size * config.data.num_global_views,
        "dtype": options.dtype,
        "compile_seconds": dict(zip(("cold", "cached"), step.compile_seconds, strict=True)),
        "temporary_bytes": step.temporary_bytes,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "seconds": seconds[0].tolist(),
        "torch_seconds": seconds[1].tolist() if len(seconds) > 1 else None,
        "parts": measured,
    }


def step_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """The steps as a Markdown table.

    Args:
        measured: what `measure` returned.

    Returns:
        The table; times are medians.
    """
    lines = [
        "| step | type | views | s | views/s | PyTorch, s | ratio | compiled in, s | from the cache, s "
        "| intermediate results, MB | process, GB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in measured:
        ours, compiled, torch = np.median(row["seconds"]), row["compile_seconds"], "| | |"
        if row["torch_seconds"] is not None:
            theirs = np.median(row["torch_seconds"])
            torch = f"| {theirs:.3f} | {ours / theirs:.2f} |"
        lines.append(
            f"| {row['variant']} | {row['dtype']} | {row['views']} | {ours:.3f} | {row['views'] / ours:.0f} "
            f"{torch} {compiled['cold']:.1f} | {compiled['cached']:.1f} "
            f"| {row['temporary_bytes'] / 1e6:.0f} | {row['peak_bytes'] / 1e9:.1f} |"
        )
    return "\n".join(lines)


def parts_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """The parts of the steps as a Markdown table.

    Args:
        measured: what `measure` returned.

    Returns:
        The table; times are medians, and the ratio is that of the time to the floor.
    """
    lines = ["| step | part | ms | share | floor, ms | ratio |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for row in measured:
        whole = np.median(row["seconds"])
        for name, part in row["parts"].items():
            seconds, floor = np.median(part["seconds"]), part["floor"]
            cells = (f"{1e3 * seconds:.1f}", f"{seconds / whole:.1%}", f"{1e3 * floor:.2f}", f"{seconds / floor:.1f}")
            lines.append(f"| {row['variant']} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures both steps, prints the tables and writes the JSON."""
    parser = command_line.timing_parser(__doc__)
    add_option(parser)
    parser.add_argument(
        "--batch_size",
        type=command_line.positive,
        default=64,
        help="images of a batch, each of two views (default: 64)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the encoder")
    options = parser.parse_args()
    timing.use_cores(options.cores)
    environment.compute_in_the_calling_thread()
    # Every program is compiled for the first time, and is in the cache for the second.
    cache = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", cache.name)
    rates = timing.rates(options.dtype)
    with cache, tempfile.TemporaryDirectory() as folder:
        measured = [measure(variant, options, rates, Path(folder)) for variant in VARIANTS]
        jax.config.update("jax_compilation_cache_dir", None)
    print(f"{rates['operations'] / 1e9:.0f} GFLOP/s, {rates['bytes'] / 1e9:.0f} GB/s")
    print(f"\n{step_table(measured)}\n\n{parts_table(measured)}")
    command_line.write_json(options.json, {"rates": rates, "steps": measured})


if __name__ == "__main__":
    main()
