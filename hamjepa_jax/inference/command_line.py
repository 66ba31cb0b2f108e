"""The modes that use a trained model: `embed`, `neighbours`, `probe`."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console

from hamjepa_jax.errors import UserError

if TYPE_CHECKING:
    from hamjepa_jax.data.sources import EncodedSource
    from hamjepa_jax.inference.tables import Embeddings
    from hamjepa_jax.pretrained import Pretrained

_IMAGES = flags.DEFINE_string(
    "images", None, "What `embed` embeds: a folder, a zip file, or a TFDS data set as NAME:SPLIT."
)
_TRAIN = flags.DEFINE_string("train", None, "What `probe` learns from: the same, with a folder for each class.")
_TEST = flags.DEFINE_string("test", None, "What `probe` is judged by, with the same classes.")
_FEATURES = flags.DEFINE_string("features", None, "The file of `embed` in which `neighbours` looks.")
_QUERY = flags.DEFINE_string("query", None, "The image whose neighbours are looked for.")
_K = flags.DEFINE_integer("k", 11, "Number of neighbours that are drawn.", 1)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Where it goes: FILE.npz or FILE.parquet of `embed`; FILE.png of `neighbours`, beside the features by default; the "
    "directory of `probe`, WORKDIR/probe by default.",
)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Whether an output that exists is replaced.")
_COORDINATES = flags.DEFINE_enum(
    "coordinates", None, ["q", "p", "qp", "whole"], "What is kept of an embedding; qp or the whole vector by default."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images that are embedded at once.", 1)
_NUM_WORKERS = flags.DEFINE_integer("num_workers", None, "Processes that read images; one for each core by default.", 0)


def run(mode: str, workdir: str | None, console: Console) -> None:
    """Does what the flags say.

    Args:
        mode: one of `MODES`.
        workdir: the directory of the run whose model is used.
        console: where progress and results are shown.

    Raises:
        UserError: for a mistake in the flags, before anything is written.
        StorageError: if a result cannot be written.
    """
    from hamjepa_jax.data.sources import SourceError

    if not workdir:
        raise UserError(f"--workdir: missing; --mode={mode} uses the model of a run, such as --workdir=runs/mine")
    try:
        MODES[mode](Path(workdir), console)
    except SourceError as error:
        raise UserError(f"{error}") from None


def _embed(workdir: Path, console: Console) -> None:
    from hamjepa_jax.inference import tables

    output = Path(_needed("output", _OUTPUT.value, "such as features.npz"))
    if output.suffix not in tables.WRITERS:
        raise UserError(f"--output={output}: must end in {' or '.join(tables.WRITERS)}")
    _refuse_to_overwrite(output)
    source = _open("images", _IMAGES.value)
    model = _load(workdir)
    kept = output.with_name(f"{output.name}.unfinished")
    embeddings = _embedded(model, source, _IMAGES.value, kept, console)
    tables.write(output, embeddings)
    shape = f"{embeddings.features.shape[0]:,} × {embeddings.features.shape[1]:,}"
    _tell_of_unreadable(embeddings, console)
    console.print(f"written: {output}: {shape} float32, {embeddings.about['coordinates']}")
    shutil.rmtree(kept, ignore_errors=True)


def _neighbours(workdir: Path, console: Console) -> None:
    from hamjepa_jax.inference import neighbours, tables

    features, query = (
        Path(_needed("features", _FEATURES.value, "a file of --mode=embed")),
        Path(_needed("query", _QUERY.value, "an image file")),
    )
    embeddings = tables.read(features)
    output = Path(_OUTPUT.value or features.with_name(f"neighbours_of_{query.stem}.png"))
    _refuse_to_overwrite(output)
    model = _load(workdir)
    if embeddings.about.get("weights") != model.fingerprint:
        raise UserError(
            f"--features={features}: was made by other weights, {embeddings.about['model']}; --workdir={workdir} is "
            f"{model.name}; embed the images again"
        )
    for place, name in enumerate(neighbours.draw_neighbours(model, embeddings, query, k=_K.value, path=output)):
        console.print(f"{place + 1:>3}  {name}")
    console.print(f"written: {output}")


def _probe(workdir: Path, console: Console) -> None:
    from hamjepa_jax.inference import probe_images

    sources = [_open(name, flag.value, by_class=True) for name, flag in (("train", _TRAIN), ("test", _TEST))]
    output = Path(_OUTPUT.value or workdir / "probe")
    _refuse_to_overwrite(output / "probe.json")
    model = _load(workdir)
    parts = [
        _embedded(model, source, flag.value, output / f"{name}.unfinished", console)
        for source, (name, flag) in zip(sources, (("train", _TRAIN), ("test", _TEST)), strict=True)
    ]
    settings = model.config.evaluation.probe
    found = probe_images.probe_images(
        *parts, learning_rates=tuple(settings.learning_rates), seed=model.config.train.seed
    )
    probe_images.write(found, output, console)
    for part, name in zip(parts, ("train", "test"), strict=True):
        _tell_of_unreadable(part, console)
        shutil.rmtree(output / f"{name}.unfinished", ignore_errors=True)


MODES: dict[str, Callable[[Path, Console], None]] = {"embed": _embed, "neighbours": _neighbours, "probe": _probe}
# Of what cannot be read, so many are named on the console; the file names all of them.
SHOWN = 20


def _needed(flag: str, value: str | None, example: str) -> str:
    if not value:
        raise UserError(f"--{flag}: missing; give {example}")
    return value


def _open(flag: str, images: str | None, *, by_class: bool = False) -> "EncodedSource":
    from hamjepa_jax.data.own_images import WHAT, open_images
    from hamjepa_jax.data.sources import SourceError

    try:
        return open_images(_needed(flag, images, WHAT), by_class=by_class)
    except SourceError as error:
        raise UserError(f"--{flag}={error}") from None


def _load(workdir: Path) -> "Pretrained":
    from hamjepa_jax import environment, pretrained

    environment.compute_in_the_calling_thread()
    environment.keep_compiled_programs()
    return pretrained.load(workdir)


def _embedded(model: "Pretrained", source: "EncodedSource", images: str, kept: Path, console: Console) -> "Embeddings":
    from hamjepa_jax.data.pipeline import available_cores
    from hamjepa_jax.inference.embed import embed

    allowed = ("q", "p", "qp") if model.is_state else ("whole",)
    coordinates = _COORDINATES.value or allowed[-1]
    if coordinates not in allowed:
        raise UserError(f"--coordinates={coordinates}: this model has {', '.join(allowed)}")
    workers = available_cores() if _NUM_WORKERS.value is None else _NUM_WORKERS.value
    return embed(
        model,
        source,
        images=images,
        coordinates=coordinates,
        kept=kept,
        batch_size=min(_BATCH_SIZE.value, len(source)),
        num_workers=workers,
        console=console,
    )


def _refuse_to_overwrite(path: Path) -> None:
    if path.exists() and not _OVERWRITE.value:
        raise UserError(f"--output: {path} exists; take another, or replace it with --overwrite")


def _tell_of_unreadable(embeddings: "Embeddings", console: Console) -> None:
    unreadable = embeddings.about["unreadable"]
    for name, reason in unreadable[:SHOWN]:
        console.print(f"left out: {name}: {reason}")
    if len(unreadable) > SHOWN:
        console.print(f"left out: {len(unreadable) - SHOWN} more")
