"""How long do the parts of an evaluation take, beside what the machine's arithmetic would, and in how much memory?

    python -m hamjepa_jax.benchmarks.evaluation --cores=2 --json=results/evaluation.json

Features are random numbers around the centres of 100 classes, in the sizes of CIFAR-100's with ResNet-18 tokens; each
part has a process of its own, compilation included. The floor is that of the matrix products alone.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import track

from hamjepa_jax import environment, sharding
from hamjepa_jax.benchmarks import command_line, timing
from hamjepa_jax.evaluation import scores
from hamjepa_jax.evaluation.geometry import geometry
from hamjepa_jax.evaluation.probe import linear_probe
from hamjepa_jax.evaluation.scores import Labelled
from hamjepa_jax.evaluation.spectra import spectrum

NUM_CLASSES = 100
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
PROBE = {"learning_rate": 1e-3, "weight_decay": 1e-6, "epochs": 50, "batch_size": 256}
FEW_LABELS = {"draws": 10, "learning_rate": 1e-2, "weight_decay": 1e-6, "steps": 500, "epochs": 50, "batch_size": 256}


class Case(NamedTuple):
    """A part of an evaluation at a size.

    Attributes:
        part: name of the part, in `PARTS`.
        gallery: number of training features.
        queries: number of test features.
        dim: their dimension.
    """

    part: str
    gallery: int
    queries: int
    dim: int


CASES = (
    Case("kNN, both votes", 50_000, 10_000, 2048),
    Case("kNN, both votes", 200_000, 10_000, 512),
    Case("linear probe", 50_000, 10_000, 2048),
    Case("linear probe, five rates and their twins", 50_000, 10_000, 2048),
    Case("few-label probes", 50_000, 10_000, 2048),
    Case("spectrum", 50_000, 10_000, 2048),
    Case("geometry", 50_000, 10_000, 2048),
)


def _knn(data: Labelled) -> None:
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    scores.knn(data, num_classes=NUM_CLASSES, ks=(1, 5, 10, 20, 50, 100, 200), temperature=0.07, seed=0, mesh=mesh)


def _probe(data: Labelled) -> None:
    linear_probe(*data[:4], num_classes=NUM_CLASSES, **PROBE)


def _sweep(data: Labelled) -> None:
    scores.linear(data, num_classes=NUM_CLASSES, learning_rates=LEARNING_RATES, seed=0, **PROBE)


def _few(data: Labelled) -> None:
    scores.few(data, num_classes=NUM_CLASSES, labels_per_class=(1, 5, 10), fractions=(0.01, 0.1), seed=0, **FEW_LABELS)


def _probe_operations(case: Case, probes: int) -> float:
    # Once forward and once for the gradient of the kernel; the features have none.
    return probes * PROBE["epochs"] * case.gallery * 2 * 2 * case.dim * NUM_CLASSES


# Name → the part, and the operations of its matrix products.
PARTS: dict[str, tuple[Callable[[Labelled], Any], Callable[[Case], float] | None]] = {
    "kNN, both votes": (_knn, lambda case: 2 * case.queries * case.gallery * case.dim),
    "linear probe": (_probe, lambda case: _probe_operations(case, 1)),
    "linear probe, five rates and their twins": (_sweep, lambda case: _probe_operations(case, 10)),
    "few-label probes": (_few, None),
    "spectrum": (lambda data: spectrum(data.train_x), None),
    "geometry": (lambda data: geometry(data.train_x, seed=0), None),
}


def features(case: Case) -> Labelled:
    """Random features.

    Args:
        case: their sizes.

    Returns:
        Features around the centres of the classes, as far from them as classes overlap a little.
    """
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((NUM_CLASSES, case.dim), np.float32) * np.float32(4.0 * case.dim**-0.5)
    arrays = []
    for count in (case.gallery, case.queries):
        labels = generator.integers(NUM_CLASSES, size=count).astype(np.int32)
        x = generator.standard_normal((count, case.dim), np.float32)
        for start in range(0, count, 4096):
            x[start : start + 4096] += centers[labels[start : start + 4096]]
        arrays += [x, labels]
    return Labelled(*arrays)


def measure(case: Case) -> dict[str, Any]:
    """Runs a case in this process.

    Args:
        case: the part and its size.

    Returns:
        The case; seconds; the size of the features, and the most memory that the process had, GiB.
    """
    data = features(case)
    start = time.perf_counter()
    PARTS[case.part][0](data)
    return case._asdict() | {
        "seconds": time.perf_counter() - start,
        "features_gib": (data.train_x.nbytes + data.test_x.nbytes) / 2**30,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "device": jax.devices()[0].device_kind,
    }


def markdown_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """The measurements as a Markdown table.

    Args:
        measured: what `measure` returned, with "floor_seconds", which may be None.

    Returns:
        The table.
    """
    lines = [
        "| part | gallery | queries | dim | seconds | floor, s | ratio | features, GiB | peak memory, GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in measured:
        floor = case["floor_seconds"]
        limits = ("–", "–") if floor is None else (f"{floor:.1f}", f"{case['seconds'] / floor:.1f}")
        lines.append(
            f"| {case['part']} | {case['gallery']:,} | {case['queries']:,} | {case['dim']} | {case['seconds']:.1f} | "
            f"{' | '.join(limits)} | {case['features_gib']:.2f} | {case['peak_memory_gib']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures every case, prints the table and writes the JSON."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--cores", type=int, default=2, help="cores of the CPU that are used (default: 2)")
    options = parser.parse_args()
    timing.use_cores(options.cores)
    measured = []
    for case in track(CASES, description="cases"):
        # A process of its own, whose memory is that of the case.
        with multiprocessing.get_context("spawn").Pool(1, environment.compute_in_the_calling_thread) as pool:
            measured.append(pool.apply(measure, (case,)))
    rate = timing.matrix_rate()
    for found, case in zip(measured, CASES, strict=True):
        operations = PARTS[case.part][1]
        found["floor_seconds"] = None if operations is None else operations(case) / rate
    print(markdown_table(measured))
    print(f"matrix rate: {rate / 1e9:.0f} GFLOP/s")
    command_line.write_json(options.json, {"matrix_rate": rate, "cores": options.cores, "cases": measured})


if __name__ == "__main__":
    main()
