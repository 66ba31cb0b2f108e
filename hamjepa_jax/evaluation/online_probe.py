"""The online probe: nearest neighbours and a ridge classifier on a subsample, while the encoder is being trained."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import track

from hamjepa_jax import environment, sharding
from hamjepa_jax.data.loading import EvaluationLoader
from hamjepa_jax.data.pipeline import SkippedRecords, blocks
from hamjepa_jax.data.sources import ArraySource, Source
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation.features import in_order
from hamjepa_jax.evaluation.knn import knn_accuracy
from hamjepa_jax.state import TrainState

# So many images are handed over at once while they are read.
BLOCK_SIZE = 256


class LabelledImages(NamedTuple):
    """Images as the frozen encoder takes them.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int32 (N,).
    """

    images: np.ndarray
    labels: np.ndarray


def subsample(
    source: Source,
    *,
    count: int,
    seed: int,
    size: int,
    resize: int,
    skipped: SkippedRecords,
    num_workers: int,
    console: Console,
) -> LabelledImages:
    """Reads some images of a source, drawn without replacement, into memory.

    Args:
        source: the images.
        count: how many, or all where there are fewer.
        seed: seed of the choice.
        size: side of the square that is cut out of the centre.
        resize: length to which the shorter side is resized before.
        skipped: is told of what could not be read.
        num_workers: processes that read and decode; 0: a thread of this one.
        console: where progress is shown.

    Returns:
        The images, in the order of the source, without those that cannot be read.

    Raises:
        UserError: if too many images cannot be read, or none can.
    """
    count = min(count, len(source))
    chosen = np.sort(np.random.default_rng(seed).choice(len(source), count, replace=False))
    load = EvaluationLoader(source, size=size, resize=resize)
    loaded = track(
        blocks(
            lambda step, positions: load(step, chosen[positions]),
            count,
            skipped,
            block_size=BLOCK_SIZE,
            # What is in memory already is read fastest from there.
            num_workers=0 if isinstance(source, ArraySource) else num_workers,
        ),
        description="reading images for the online probe",
        total=-(-count // BLOCK_SIZE),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    # What comes from a worker lies in memory that is shared with it.
    parts = [(block.images.copy(), block.labels.copy()) for block in loaded if len(block.labels)]
    if not parts:
        raise UserError(f"none of the {count} images of the online probe can be read; the first is {source.name_of(0)}")
    images, labels = zip(*parts, strict=True)
    return LabelledImages(np.concatenate(images), np.concatenate(labels))


class OnlineProbe:
    """Judges the encoder every so many steps; the training does not depend on it.

    Every process of a run calls it after the same steps, as all devices embed the images together.
    """

    def __init__(
        self,
        feature_step: Callable[[TrainState, jax.Array], dict[str, jax.Array]],
        mesh: Mesh,
        train: LabelledImages,
        test: LabelledImages,
        *,
        num_classes: int,
        every_steps: int,
        batch_size: int,
        k: int,
        ridge_penalty: float,
    ):
        """Keeps the arguments; nothing is computed yet.

        Args:
            feature_step: see `step.make_feature_step`; the first, the headline coordinate is judged.
            mesh: the device mesh.
            train: the labelled images.
            test: the images to be classified.
            num_classes: number of classes.
            every_steps: steps between two probes.
            batch_size: images that are embedded at once, rounded up to a multiple of the devices.
            k: neighbours that vote, or all labelled images where there are fewer.
            ridge_penalty: see `ridge_accuracy`.
        """

        def headline(state: TrainState, images: jax.Array) -> jax.Array:
            coordinates = feature_step(state, images)
            return coordinates[in_order(coordinates)[0]]

        self._embed = environment.jit_quickly(headline, out_shardings=sharding.replicated(mesh))
        self._mesh, self._train, self._test = mesh, train, test
        self._num_classes, self._every_steps = num_classes, every_steps
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._k, self._ridge_penalty = k, ridge_penalty
        self.names = (f"online_knn{k}", "online_ridge")

    def due(self, num_steps: int) -> bool:
        """Whether the encoder is to be judged after so many steps."""
        return num_steps > 0 and num_steps % self._every_steps == 0

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Judges the encoder.

        Args:
            state: the training state on the mesh, which is left as it is.

        Returns:
            Top-1 accuracies as fractions, by `names`; not a number where the features are not finite.
        """
        train_x, test_x = (self._features(state, images) for images in (self._train.images, self._test.images))
        if not (np.isfinite(train_x).all() and np.isfinite(test_x).all()):
            return dict.fromkeys(self.names, math.nan)
        data = (train_x, self._train.labels, test_x, self._test.labels)
        k = min(self._k, len(train_x))
        knn = knn_accuracy(*data, ks=(k,), num_classes=self._num_classes, mesh=self._mesh)["top1"][0]
        ridge = ridge_accuracy(*data, num_classes=self._num_classes, penalty=self._ridge_penalty)
        return dict(zip(self.names, (knn, ridge), strict=True))

    def _features(self, state: TrainState, images: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), self._batch_size):
            block = images[start : start + self._batch_size]
            # One size, so that one compilation serves all blocks.
            padding = np.zeros((self._batch_size - len(block), *block.shape[1:]), np.uint8)
            placed = sharding.place(np.concatenate([block, padding]), sharding.batch_sharding(self._mesh))
            parts.append(self._embed(state, placed))
        return np.concatenate(jax.device_get(parts))[: len(images)]


def ridge_accuracy(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    num_classes: int,
    penalty: float,
) -> float:
    """Accuracy of ridge regression on the classes, W = (XᵀX + λNI)⁻¹XᵀY.

    X holds the features, standardised over the training examples, and Y the classes as unit vectors, less their mean.

    Args:
        train_x: training features (N, D).
        train_y: training labels (N,).
        test_x: test features (M, D).
        test_y: test labels (M,).
        num_classes: number of classes.
        penalty: λ; the variance of a standardised feature is 1.

    Returns:
        The share of test examples whose class has the largest output.

    References:
        Hoerl & Kennard, "Ridge regression", Technometrics 12(1), 1970.
    """
    from scipy.linalg import solve

    # Where features nearly depend on each other, single precision is not enough.
    train_x, test_x = np.asarray(train_x, np.float64), np.asarray(test_x, np.float64)
    mean, std = train_x.mean(axis=0), train_x.std(axis=0)
    scale = np.where(std > 0, std, 1.0)
    x, y = (train_x - mean) / scale, np.eye(num_classes)[train_y]
    share = y.mean(axis=0)
    gram = x.T @ x + penalty * len(x) * np.eye(x.shape[1])
    weights = solve(gram, x.T @ (y - share), assume_a="pos")
    outputs = (test_x - mean) / scale @ weights + share
    return float(np.mean(outputs.argmax(axis=1) == test_y))
