"""A trained model in use: images become embeddings, and the predictor carries states on.

import hamjepa_jax

model = hamjepa_jax.load("runs/cifar100-hamjepa-seed0")
z = model.embed([Image.open("cat.jpg"), Image.open("dog.jpg")])
model.predict(z), model.energy(z), model.rollout(z, steps=100)
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from hamjepa_jax import build, build_objective, sharding
from hamjepa_jax.checkpoint import Checkpointer
from hamjepa_jax.data.images import from_pillow, shorter_side_crop, with_channels
from hamjepa_jax.dynamics.predictors import split_state
from hamjepa_jax.errors import UserError
from hamjepa_jax.state import TrainState
from hamjepa_jax.workdir import Workdir

# Images that are embedded at once.
BATCH_SIZE = 256
Images = np.ndarray | Sequence[np.ndarray | Image.Image]


def load(workdir: str | Path, *, step: int | None = None) -> "Pretrained":
    """Reads the encoder and the predictor of a run; its data set is not needed.

    Args:
        workdir: the directory of the run.
        step: which checkpoint; the newest by default.

    Returns:
        The model.

    Raises:
        UserError: if there is no run, no such checkpoint, or none that can be read.
    """
    directory = Workdir(Path(workdir))
    config = ConfigDict(directory.read_config_file())
    made = build.model(config)
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.local_devices()[:1])
    abstract_state = jax.eval_shape(made.initial_state, jax.random.key(0))
    checkpointer = Checkpointer(directory.checkpoints, keep=1, read_only=True)
    try:
        restored = checkpointer.restore(
            abstract_state,
            sharding.state_sharding(mesh, abstract_state),
            config=json.loads(config.to_json()),
            step=step,
        )
    finally:
        checkpointer.close()
    if restored is None:
        which = "no checkpoint here" if step is None else f"no checkpoint {step} here"
        raise UserError(f"--workdir={workdir}: {which}; train first")
    return Pretrained(config, made, restored.state, residual_scale=_residual_scale(config, directory, restored.step))


def _residual_scale(config: ConfigDict, directory: Workdir, step: int) -> float:
    """That of the last step: while the learned part of the energy comes in, it depends on the epoch."""
    ramp = config.predictor.residual_ramp_epochs
    if not ramp or not directory.log_file.exists():
        return config.predictor.residual_scale
    records = [json.loads(line) for line in directory.log_file.read_text().splitlines()]
    steps_per_epoch = next((round((r["step"] + 1) / r["epoch"]) for r in reversed(records) if r["epoch"]), 1)
    return config.predictor.residual_scale * min(1.0, (max(step - 1, 0) // steps_per_epoch + 1) / ramp)


class Pretrained:
    """An encoder and a predictor that were trained together.

    Attributes:
        config: the config of the run.
        step: the number of steps it was trained.
        state_dim: size D of an embedding.
        is_state: whether an embedding is a state z = [q ; p].
        name: experiment, variant, seed and step.
        encoder: the encoder.
        variables: its variables, on all devices of this process.
        predictor_params: the parameters of the predictor.
        residual_scale: factor s of the learned part of the energy.
    """

    def __init__(self, config: ConfigDict, model: build.Model, state: TrainState, *, residual_scale: float):
        """Takes what `load` has read.

        Args:
            config: the config of the run.
            model: what it describes.
            state: the trained state.
            residual_scale: factor s of the learned part of the energy.
        """
        self.config, self.step, self.state_dim = config, int(state.step), model.state_dim
        self.is_state: bool = config.model.split_qp
        self.name = f"{config.name} {config.variant}, seed {config.train.seed}, step {self.step}"
        self._predictor, self.residual_scale = model.predictor, residual_scale
        self.predictor_params = state.params["predictor"]
        self._mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.local_devices())
        variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
        self.variables = jax.device_put(variables, sharding.replicated(self._mesh))
        self.encoder, self._preprocess = model.encoder, model.preprocess
        self._encode = jax.jit(self.make_encode(), out_shardings=sharding.batch_sharding(self._mesh))

    @functools.cached_property
    def fingerprint(self) -> str:
        """What tells the weights of this encoder from those of others, 16 hexadecimal digits of their SHA-256."""
        digest = hashlib.sha256()
        for array in jax.tree.leaves(self.variables):
            digest.update(np.asarray(array))
        return digest.hexdigest()[:16]

    def make_encode(self, **settings: Any) -> Callable[[Any, jax.Array], jax.Array]:
        """The frozen encoder as a pure function.

        Args:
            **settings: fields of the encoder to be changed.

        Returns:
            A function from `variables` and uint8 images (B, S, S, C) to embeddings, float32 (B, D).
        """
        encoder, preprocess = self.encoder.clone(**settings), self._preprocess

        def encode(variables: Any, images: jax.Array) -> jax.Array:
            return encoder.apply(variables, preprocess(images), train=False).astype(jnp.float32)

        return encode

    def embed(self, images: Images, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Embeds images as the evaluation does: the shorter side resized, the centre cut out, no augmentation.

        Args:
            images: uint8 arrays (H, W, C) or (H, W), or Pillow images, of any sizes; or one array (N, H, W, C).
            batch_size: how many are embedded at once, on all devices of this process.

        Returns:
            float32 (N, D); of a state [q ; p], see `coordinates`.

        Raises:
            ValueError: if something is no image, naming its place.
        """
        if isinstance(images, Image.Image) or isinstance(images, np.ndarray) and images.ndim != 4:
            raise ValueError("images: must be a sequence of images; give [image] for a single one")
        found = [np.zeros((0, self.state_dim), np.float32)]
        for views in _batches(enumerate(images), batch_size, self._view):
            found.append(np.asarray(self.encode(np.array(views), batch_size))[: len(views)])
        return np.concatenate(found)

    def float32_encode(self, views: np.ndarray) -> np.ndarray:
        """Embeds a few images as `encode`, but computes in float32 throughout, whatever the model was trained in.

        Args:
            views: uint8 (b, S, S, C).

        Returns:
            float32 (b, D).
        """
        with jax.default_matmul_precision("highest"):
            return np.asarray(jax.jit(self.make_encode(dtype=jnp.float32))(self.variables, views))

    def encode(self, views: np.ndarray, batch_size: int) -> jax.Array:
        """Embeds what the encoder sees of images, on all devices of this process.

        Args:
            views: uint8 (b, S, S, C), S and C being those of the training.
            batch_size: at least b; batches of one size are compiled once.

        Returns:
            float32 (B, D), of which the first b rows count.
        """
        rows = -(-batch_size // self._mesh.size) * self._mesh.size
        padded = np.zeros((rows, *views.shape[1:]), np.uint8)
        padded[: len(views)] = views
        return self._encode(self.variables, sharding.place(padded, sharding.batch_sharding(self._mesh)))

    def coordinates(self, z: jax.Array) -> dict[str, jax.Array]:
        """The parts of embeddings.

        Args:
            z: embeddings (..., D).

        Returns:
            {"q": (..., D/2), "p": (..., D/2), "qp": z} of states, else {"whole": z}.
        """
        if not self.is_state:
            return {"whole": z}
        q, p = split_state(z)
        return {"q": q, "p": p, "qp": z}

    def predict(self, z: jax.Array, direction: int = 1) -> jax.Array:
        """Carries states on, z → Φ(z), or back.

        Args:
            z: embeddings (..., D).
            direction: 1, or −1 for the inverse of a flow.

        Returns:
            Embeddings (..., D).
        """
        z = self._checked(z)
        rows = jnp.reshape(z, (-1, self.state_dim))
        ahead = self._predictor.apply(
            self.predictor_params, rows, direction=direction, residual_scale=self.residual_scale
        )
        return ahead.reshape(z.shape)

    def energy(self, z: jax.Array) -> jax.Array:
        """The learned energy H(q, p).

        Args:
            z: states (..., D).

        Returns:
            (...).

        Raises:
            ValueError: if the predictor has no energy.
        """
        settings = self.config.predictor
        if settings.name != build_objective.FLOW or not self.is_state:
            raise ValueError(
                f"energy: only the flow of a Hamiltonian has one, and this run's predictor is {settings.name}"
            )
        energy = build_objective.energy(settings)
        return energy.value(self.predictor_params, *split_state(self._checked(z)), residual_scale=self.residual_scale)

    def rollout(self, z: jax.Array, steps: int) -> jax.Array:
        """Predicts again and again: z, Φ(z), Φ(Φ(z)), ...

        Args:
            z: embeddings (..., D).
            steps: number of predictions.

        Returns:
            Embeddings (steps + 1, ..., D), the first of them z.
        """
        z = self._checked(z)

        def onwards(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            following = self.predict(state)
            return following, following

        _, path = jax.lax.scan(onwards, z, length=steps)
        return jnp.concatenate([z[None], path])

    def _view(self, place: int, image: np.ndarray | Image.Image) -> np.ndarray:
        """What the encoder sees of an image, uint8 (S, S, C)."""
        if isinstance(image, Image.Image):
            image = from_pillow(image)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
            shown = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(
                f"images[{place}]: must be a Pillow image or a uint8 array (H, W, C) or (H, W), got {shown}"
            )
        try:
            pixels = with_channels(image, len(self.config.data.mean))
        except ValueError as error:
            raise ValueError(f"images[{place}]: {error}") from None
        return shorter_side_crop(pixels, size=self.config.data.view_size, resize=self.config.evaluation.resize)

    def _checked(self, z: Any) -> jax.Array:
        z = jnp.asarray(z)
        if z.ndim < 1 or z.shape[-1] != self.state_dim:
            raise ValueError(f"z: must be embeddings (..., {self.state_dim}), got {z.shape}")
        return z


def _batches(numbered: Iterable[tuple[int, Any]], size: int, view: Any) -> Iterator[list[np.ndarray]]:
    """The views of images, `size` at a time."""
    batch: list[np.ndarray] = []
    for place, image in numbered:
        batch.append(view(place, image))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
