"""How long does a training step take, where does the time go, and how long does PyTorch take?

    python -m hamjepa_jax.benchmarks.train_step --json=results/train_step.json
    python -m hamjepa_jax.benchmarks.train_step --against=torch --batch_size=512 --dtype=bfloat16

The steps of configs/cifar100.py, on images of noise that lie on the device. With --against=torch the same model and
losses in PyTorch (`torch_step.py`) take turns with ours, on a GPU with the channels last and compiled. The current
directory is that of the repository.

The floor of a part is the time of its operations at the rate of a large matrix product, or of its bytes at the rate of
a copy, whichever is longer. The operations of a convolution are those of adding tap by tap; the matrix products that
replace it on a CPU need fewer, so that its ratio may be below one.
"""

import argparse
import resource
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from hamjepa_jax import environment
from hamjepa_jax.benchmarks import command_line, shipped, timing
from hamjepa_jax.benchmarks.beside_torch import TorchStep, parse, ratio_to_torch
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


def measure(options: argparse.Namespace, rates: Mapping[str, float], folder: Path) -> list[dict[str, Any]]:
    """Times the steps of all variants and those of PyTorch by turns, and then the parts of ours.

    Args:
        options: those of the command line.
        rates: `operations` and `bytes`, a second.
        folder: where images are made that are there only to be counted.

    Returns:
        For each variant {"variant", "batch_size", "views", "dtype", "compile_seconds", "temporary_bytes", "seconds",
        "torch_seconds", "parts"}: `torch_seconds` is None without PyTorch; `parts` are {"seconds", "operations",
        "bytes", "floor"} by name.
    """
    loaded = [
        shipped.load("cifar100", variant, folder, batch_size=options.batch_size, dtype=options.dtype)
        for variant in VARIANTS
    ]
    steps = [Step(config, experiment) for config, experiment in loaded]
    in_torch = []
    if options.against == "torch":
        in_torch = [TorchStep(options.torch_python, variant, torch_arguments(options)) for variant in VARIANTS]
    with threadpool_limits(1, user_api="blas"), environment.reusing_memory():
        seconds = timing.alternate([*steps, *in_torch], options.repeats).tolist()
        for process in in_torch:
            process.close()
        measured = [_measure_parts(step, options, rates) for step in steps]
    ours, theirs = seconds[: len(steps)], seconds[len(steps) :] or [None] * len(steps)
    return [
        {
            "variant": variant,
            "batch_size": options.batch_size,
            "views": options.batch_size * config.data.num_global_views,
            "dtype": options.dtype,
            "compile_seconds": dict(zip(("cold", "cached"), step.compile_seconds, strict=True)),
            "temporary_bytes": step.temporary_bytes,
            "seconds": of_ours,
            "torch_seconds": of_torch,
            "parts": of_parts,
        }
        for variant, (config, _), step, of_ours, of_torch, of_parts in zip(
            VARIANTS, loaded, steps, ours, theirs, measured, strict=True
        )
    ]


def _measure_parts(step: Step, options: argparse.Namespace, rates: Mapping[str, float]) -> dict[str, Any]:
    found = parts(step)
    runs = [lambda part=part: jax.block_until_ready(part.run(*part.arguments)) for part in found.values()]
    return {
        name: {
            "seconds": seconds,
            "operations": part.operations,
            "bytes": part.num_bytes,
            "floor": max(part.operations / rates["operations"], part.num_bytes / rates["bytes"]),
        }
        for (name, part), seconds in zip(found.items(), timing.alternate(runs, options.repeats).tolist(), strict=True)
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
        "| intermediate results, MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in measured:
        ours, compiled, torch = np.median(row["seconds"]), row["compile_seconds"], "| | |"
        if row["torch_seconds"] is not None:
            torch = f"| {np.median(row['torch_seconds']):.3f} | {ratio_to_torch(row):.2f} |"
        lines.append(
            f"| {row['variant']} | {row['dtype']} | {row['views']} | {ours:.3f} | {row['views'] / ours:.0f} "
            f"{torch} {compiled['cold']:.1f} | {compiled['cached']:.1f} "
            f"| {row['temporary_bytes'] / 1e6:.0f} |"
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
    parser.add_argument(
        "--batch_size",
        type=command_line.positive,
        default=64,
        help="images of a batch, each of two views (default: 64)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the encoder")
    options = parse(parser)
    timing.use_cores(options.cores)
    environment.compute_in_the_calling_thread()
    # Every program is compiled for the first time, and is in the cache for the second.
    cache = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", cache.name)
    rates = timing.rates(options.dtype)
    with cache, tempfile.TemporaryDirectory() as folder:
        measured = measure(options, rates, Path(folder))
        jax.config.update("jax_compilation_cache_dir", None)
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{rates['operations'] / 1e9:.0f} GFLOP/s, {rates['bytes'] / 1e9:.0f} GB/s")
    print(f"at most {peak_bytes / 1e9:.1f} GB in this process, both steps and 50,000 images included")
    print(f"\n{step_table(measured)}\n\n{parts_table(measured)}")
    results = {"rates": rates, "peak_bytes": peak_bytes, "steps": measured}
    if options.against == "torch":
        results["ratio_to_torch"] = {row["variant"]: ratio_to_torch(row) for row in measured}
    command_line.write_json(options.json, results)


if __name__ == "__main__":
    main()
