"""From the config to what watches a run: event logs and the online probe."""

from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from hamjepa_jax import build_data, distributed, event_logs
from hamjepa_jax.build import Experiment
from hamjepa_jax.errors import require
from hamjepa_jax.evaluation.online_probe import OnlineProbe, subsample
from hamjepa_jax.step import make_feature_step
from hamjepa_jax.workdir import Workdir


def check(config: ConfigDict) -> None:
    """Makes sure that the config asks for what is possible and installed; writes nothing.

    Args:
        config: the whole config.

    Raises:
        UserError: naming the config key.
    """
    penalty = config.evaluation.online_probe.ridge_penalty
    require(penalty > 0, "evaluation.online_probe.ridge_penalty", f"must be positive, got {penalty}")
    if config.log.wandb:
        event_logs.require_wandb()


def open_event_logs(config: ConfigDict, workdir: Workdir) -> list[event_logs.EventLog]:
    """Opens the event logs of a run in the primary process; what that refuses is refused in all of them.

    Args:
        config: the whole config.
        workdir: the directory of the run.

    Returns:
        The logs, to be closed; none in the other processes.

    Raises:
        UserError: if Weights & Biases refuses.
        StorageError: if one cannot be written.
    """
    opened = []

    def open_them() -> None:
        if config.log.tensorboard:
            opened.append(event_logs.TensorBoardLog(workdir.path / "tensorboard"))
        if config.log.wandb:
            name = f"{config.name}-{config.variant}-seed{config.train.seed}"
            opened.append(event_logs.WeightsAndBiasesLog(workdir.path, project=config.log.wandb, name=name))

    distributed.on_primary(open_them)
    return opened


def log_picture(config: ConfigDict, workdir: Workdir, *, step: int, tag: str, path: Path) -> None:
    """Adds a picture to the event logs of a run that is not being trained.

    Args:
        config: the whole config.
        workdir: the directory of the run.
        step: the step that the picture belongs to.
        tag: its tag, such as `evaluation/summary`.
        path: a PNG file.

    Raises:
        UserError: if Weights & Biases refuses.
        StorageError: if a log cannot be written.
    """
    for log in open_event_logs(config, workdir):
        log.picture(step, tag, path)
        log.close()


def online_probe(config: ConfigDict, experiment: Experiment, mesh: Mesh, console: Console) -> OnlineProbe | None:
    """Reads the images of the online probe.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it, with data in memory where it fits.
        mesh: the device mesh.
        console: where progress is shown.

    Returns:
        The probe, or None if the run has no step after which it would be due.

    Raises:
        UserError: if too many images cannot be read.
    """
    settings = config.evaluation.online_probe
    every_steps = settings.every_epochs * experiment.steps_per_epoch
    if not 0 < every_steps <= experiment.total_steps:
        return None
    train, test = (
        subsample(
            source,
            count=count,
            seed=config.train.seed,
            size=config.data.view_size,
            resize=config.evaluation.resize,
            skipped=build_data.skipped_records(config.data, console),
            num_workers=build_data.num_workers(config.data),
            console=console,
        )
        for source, count in (
            (experiment.train_source, settings.train_images),
            (experiment.test_source, settings.test_images),
        )
    )
    return OnlineProbe(
        make_feature_step(
            encoder=experiment.encoder,
            preprocess=experiment.preprocess,
            coordinates=experiment.objective.coordinates,
        ),
        mesh,
        train,
        test,
        num_classes=experiment.train_source.num_classes,
        every_steps=every_steps,
        batch_size=config.evaluation.batch_size,
        k=settings.k,
        ridge_penalty=settings.ridge_penalty,
    )
