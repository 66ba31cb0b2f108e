"""How many images a second does --mode=embed embed, and does its memory grow with their number?

    python -m hamjepa_jax.benchmarks.embed --cores=2 --json=results/embed.json

Photographs of 32×32 pixels, JPEG files in folders, are embedded by an encoder of the size of configs/digits.py's, on
three channels, and by the ResNet-18 of configs/cifar100.py, both with random weights. Each measurement has a process of
its own, which reads, decodes, embeds and writes, compilation included; "at full speed" is what each image takes more of
them. The floor is that of the encoder's matrix products and convolutions at the rate of a large matrix product.
"""

import json
import multiprocessing
import resource
import runpy
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from hamjepa_jax import build, environment, pretrained
from hamjepa_jax.benchmarks import command_line, photographs, timing
from hamjepa_jax.benchmarks.collectives import floating_point_operations
from hamjepa_jax.checkpoint import Checkpointer
from hamjepa_jax.data.own_images import open_images
from hamjepa_jax.data.pipeline import available_cores
from hamjepa_jax.inference import tables
from hamjepa_jax.inference.embed import embed
from hamjepa_jax.workdir import Workdir

SIZE, BATCH_SIZE, IMAGES_IN_A_FOLDER = 32, 256, 1000
NUM_IMAGES = (2_500, 10_000)
ENCODERS: dict[str, dict[str, Any]] = {
    "of the size of digits'": {"widths": (32, 64), "depths": (1, 1), "token_layer": 2, "token_hw": 4},
    "ResNet-18": {},
}


def write_images(folder: Path, count: int) -> None:
    """Writes JPEG files: pieces of scikit-learn's two sample photographs.

    Args:
        folder: where they go.
        count: how many.
    """
    for number, piece in enumerate(photographs.cuts(count, (SIZE, SIZE))):
        path = folder / f"{number // IMAGES_IN_A_FOLDER}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(piece).save(path, quality=90)


def config_of(encoder: str) -> Any:
    """The config of configs/cifar100.py with one of `ENCODERS`, in float32."""
    config = runpy.run_path("configs/cifar100.py")["get_config"]("hamjepa")
    config.model.update(ENCODERS[encoder] | {"dtype": "float32"})
    return config


def save_run(encoder: str, workdir: Path) -> None:
    """Makes the directory of a run with random weights.

    Args:
        encoder: one of `ENCODERS`.
        workdir: the directory.
    """
    config = config_of(encoder)
    plain = json.loads(config.to_json())
    Workdir(workdir).claim(plain)
    state = jax.jit(build.model(config).initial_state)(jax.random.key(0))
    checkpointer = Checkpointer(workdir / "checkpoints", keep=1)
    checkpointer.save(0, state, data={"next_step": 0}, config=plain, metrics={})
    checkpointer.close()


def measure(workdir: Path, folder: Path, output: Path) -> dict[str, Any]:
    """Embeds all images of a folder in this process.

    Args:
        workdir: the directory of a run.
        folder: the images.
        output: where the embeddings go.

    Returns:
        {"images", "seconds", "peak_memory_gib", "operations_per_image"}, the memory that of this process without its
        readers.
    """
    environment.compute_in_the_calling_thread()
    start = time.perf_counter()
    model, source = pretrained.load(workdir), open_images(str(folder))
    embeddings = embed(
        model,
        source,
        images=str(folder),
        coordinates="qp",
        kept=output.with_suffix(".unfinished"),
        batch_size=BATCH_SIZE,
        num_workers=available_cores(),
        console=Console(quiet=True),
    )
    tables.write(output, embeddings)
    seconds = time.perf_counter() - start
    views = jax.ShapeDtypeStruct((BATCH_SIZE, SIZE, SIZE, 3), np.uint8)
    jaxpr = jax.make_jaxpr(model.make_encode(spatial_first=False))(model.variables, views)
    return {
        "images": len(embeddings.features),
        "seconds": seconds,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "operations_per_image": floating_point_operations(jaxpr.jaxpr) / BATCH_SIZE,
    }


def rows(measured: Mapping[str, Sequence[Mapping[str, Any]]], rate: float) -> list[dict[str, Any]]:
    """What the table has of each encoder.

    Args:
        measured: encoder → what `measure` returned for fewer and for more images.
        rate: operations of a large matrix product in a second.

    Returns:
        A row for each encoder: {"encoder", "images_per_second", "at_full_speed", "floor", "peak_memory_gib"}, speeds in
        images a second, and the memory for fewer and for more images.
    """
    found = []
    for encoder, (few, many) in measured.items():
        more = many["images"] - few["images"]
        found.append(
            {
                "encoder": encoder,
                "images_per_second": many["images"] / many["seconds"],
                "at_full_speed": more / (many["seconds"] - few["seconds"]),
                "floor": rate / many["operations_per_image"],
                "peak_memory_gib": [few["peak_memory_gib"], many["peak_memory_gib"]],
            }
        )
    return found


def markdown_table(found: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown.

    Args:
        found: what `rows` returned.

    Returns:
        The table.
    """
    few, many = (f"{count:,}" for count in NUM_IMAGES)
    lines = [
        f"| encoder | {many} images, images/s | at full speed | arithmetic alone | memory at {few}, GiB | at {many} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found:
        speeds = [f"{row[name]:,.0f}" for name in ("images_per_second", "at_full_speed", "floor")]
        memory = [f"{gib:.2f}" for gib in row["peak_memory_gib"]]
        lines.append(f"| {row['encoder']} | {' | '.join([*speeds, *memory])} |")
    return "\n".join(lines)


def main() -> None:
    """Measures every encoder, prints the table and writes the JSON."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--cores", type=int, default=2, help="cores of the CPU that are used (default: 2)")
    options = parser.parse_args()
    timing.use_cores(options.cores)
    measured: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for count in NUM_IMAGES:
            write_images(root / f"images{count}", count)
        for encoder in track(ENCODERS, description="encoders"):
            workdir = root / f"run{len(measured)}"
            save_run(encoder, workdir)
            measured[encoder] = []
            for count in NUM_IMAGES:
                output = root / f"{workdir.name}-{count}.npz"
                # A process of its own, whose memory is that of the measurement, and which may have readers.
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    done = pool.submit(measure, workdir, root / f"images{count}", output)
                    measured[encoder].append(done.result())
    rate = timing.matrix_rate()
    found = rows(measured, rate)
    print(markdown_table(found))
    print(f"matrix rate: {rate / 1e9:.0f} GFLOP/s")
    results = {"matrix_rate": rate, "cores": options.cores, "rows": found, "measured": measured}
    command_line.write_json(options.json, results)


if __name__ == "__main__":
    main()
