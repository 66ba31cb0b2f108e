"""Event logs: the records and pictures of a run where TensorBoard and Weights & Biases show them."""

import contextlib
import json
import secrets
import socket
import struct
import textwrap
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hamjepa_jax.atomic_files import replacing, writing
from hamjepa_jax.errors import UserError

# Fields of a record, see `telemetry.Telemetry.record`, that are neither terms nor statistics of the loss.
GROUPS = {
    "loss": "train",
    "epoch": "train",
    "learning_rate": "train",
    "skipped": "train",
    "gradient_norm": "gradient",
    "views_per_second": "speed",
    "input_wait": "speed",
}
# Beginnings of such fields, which the group replaces.
GROUP_OF_PREFIX = {"gradient_share_": "gradient/share_", "online_": "probe/"}
NO_SCALARS = ("step", "warnings")


class EventLog(ABC):
    """Where records and pictures of one run go, in the order of the steps."""

    @abstractmethod
    def begin(self, step: int, config: Mapping[str, Any]) -> None:
        """Says that the run begins or goes on; what was logged from this step on is about to be repeated.

        Args:
            step: the first step that is going to be logged.
            config: the config of the run, as plain JSON values.

        Raises:
            StorageError: if it cannot be written; so with all methods but `close`.
        """

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers.

        Args:
            step: the step they belong to.
            values: the numbers by tag, finite or not.
        """

    @abstractmethod
    def picture(self, step: int, tag: str, path: Path) -> None:
        """Logs a picture.

        Args:
            step: the step it belongs to.
            tag: its tag.
            path: a PNG file.

        Raises:
            UserError: if it cannot be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the log; nothing is left to be written that was not before."""


def tagged(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record in groups: train, terms, statistics, gradient, speed and probe.

    Args:
        record: a record of metrics.jsonl; what is not finite is a string, and what is not known None.

    Returns:
        The numbers by tag, such as `train/loss`, `terms/prediction` or `gradient/share_prediction`.
    """
    terms = {name for name in record if f"gradient_share_{name}" in record}

    def tag(name: str) -> str:
        for prefix, group in GROUP_OF_PREFIX.items():
            if name.startswith(prefix):
                return group + name.removeprefix(prefix)
        group = GROUPS.get(name, "terms" if name in terms else "statistics")
        return f"{group}/{name.removeprefix(f'{group}_')}"

    known = {name: value for name, value in record.items() if name not in NO_SCALARS and value is not None}
    return {tag(name): float(value) for name, value in known.items()}


class TensorBoardLog(EventLog):
    """Event files for TensorBoard, one for each time that the run is begun or gone on with.

    The writer of tensorboardX hands events to threads, which die of a full disk and let the run wait for ever. Only its
    messages are used here, and each is in the file before the next step.
    """

    def __init__(self, directory: Path):
        """Opens a new event file.

        Args:
            directory: where it goes, created if need be.

        Raises:
            StorageError: if it cannot be written.
        """
        # Read in the order of their names. A run may be gone on with within a second.
        self._path = directory / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        with writing(self._path):
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
        self._write(file_version="brain.Event:2")

    def begin(self, step: int, config: Mapping[str, Any]) -> None:
        """Has TensorBoard forget what earlier files hold from this step on, and logs the config as a text."""
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import SessionLog

        self._write(step=step, session_log=SessionLog(status=SessionLog.START))
        # Indented, it is shown as it is.
        self._write(
            step=step, summary=summary.text("text/config", textwrap.indent(json.dumps(config, indent=1), "    "))
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers, all of them in one event."""
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=Summary(value=scalars))

    def picture(self, step: int, tag: str, path: Path) -> None:
        """Logs the bytes of a PNG file as they are."""
        from PIL import Image
        from tensorboardX.proto.summary_pb2 import Summary

        try:
            with Image.open(path) as opened:
                (width, height), channels = opened.size, len(opened.getbands())
            encoded = path.read_bytes()
        except OSError as error:
            reason = error.strerror or "not a picture"
            raise UserError(f"{path}: cannot be read ({reason}); remove it, and give the same command again") from error
        image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=encoded)
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def close(self) -> None:
        """Closes the file."""
        # What could not be written, and was reported then, cannot be written now.
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, **event: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        data = Event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        parts = (length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data)))
        with writing(self._path):
            self._file.write(b"".join(parts))
            self._file.flush()


class WeightsAndBiasesLog(EventLog):
    """A run at Weights & Biases, the same one whenever the run of the directory is gone on with."""

    def __init__(self, directory: Path, *, project: str, name: str):
        """Opens the run.

        Args:
            directory: the directory of the run, which keeps its id.
            project: the project there.
            name: what to call the run there.

        Raises:
            UserError: if it cannot be opened.
            StorageError: if its id cannot be written.
        """
        import wandb

        self._picture = wandb.Image
        run_id = _kept_id(directory / "wandb_id")
        try:
            self._run = wandb.init(project=project, name=name, id=run_id, resume="allow", dir=str(directory))
        except wandb.Error as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"config.log.wandb: the run cannot be opened ({reason}); run `wandb login`, or set WANDB_MODE=offline "
                "in the environment"
            ) from error

    def begin(self, step: int, config: Mapping[str, Any]) -> None:
        """Sends the config."""
        self._run.config.update(dict(config), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers, unless the run there has this step already: what a run repeats, it repeats exactly."""
        if step >= self._run.starting_step:
            self._run.log(dict(values), step=step)

    def picture(self, step: int, tag: str, path: Path) -> None:
        """Logs a picture, at the newest step where this one is over: the steps there never go back."""
        self._run.log({tag: self._picture(str(path))}, step=max(step, self._run.step))

    def close(self) -> None:
        """Waits until all is sent."""
        self._run.finish()


def require_wandb() -> None:
    """Makes sure that Weights & Biases can be imported.

    Raises:
        UserError: if it is not installed.
    """
    try:
        # A folder of that name, such as its files make, can be imported too.
        from wandb import init  # noqa: F401
    except ImportError:
        raise UserError(
            "config.log.wandb: logging there needs the package wandb; `pip install wandb`, or leave it empty"
        ) from None


def _kept_id(path: Path) -> str:
    if not path.exists():
        with replacing(path) as replacement:
            replacement.write_text(secrets.token_hex(4))
    return path.read_text()
