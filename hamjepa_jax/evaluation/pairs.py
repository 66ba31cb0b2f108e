"""Pairs of embeddings: two views of images that the encoder has not been trained on."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict
from rich.console import Console

from hamjepa_jax import build_data, environment
from hamjepa_jax.build import Experiment
from hamjepa_jax.data.images import UnreadableImage
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation.spectra import alignment
from hamjepa_jax.state import TrainState
from hamjepa_jax.step import Views

NUM_EXAMPLES = 512
# Images that are embedded at a time.
BLOCK_SIZE = 128


def held_out_views(
    config: ConfigDict, experiment: Experiment, states: Sequence[TrainState], console: Console
) -> list[jax.Array]:
    """Embeds two views of at most 512 test images, drawn as in training, with the frozen encoder.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        states: states whose encoders are asked, on one device of this process.
        console: where images that cannot be read are named.

    Returns:
        Embeddings of each encoder, float32 (2, N, D), the images in random order.

    Raises:
        UserError: if too many images cannot be read.
    """
    seed, source = config.train.seed, experiment.test_source
    count = min(NUM_EXAMPLES, len(source))
    example_ids = np.random.default_rng(seed).permutation(len(source))[:count]
    size = min(BLOCK_SIZE, count)
    # The last block is filled up, so that one compilation serves all.
    padded = np.resize(example_ids, -(-count // size) * size)
    load = build_data.loader(config.data, source, seed=seed)
    skipped = build_data.skipped_records(config.data, console)
    parts = []
    for start in range(0, count, size):
        try:
            batch, unreadable = load(0, padded[start : start + size])
        except UnreadableImage as error:
            raise UserError(f"{error}") from None
        skipped.add(unreadable)
        parts.append(
            [_embed(experiment.views, experiment.encoder, state, jax.random.key(seed), batch) for state in states]
        )
    return [jnp.concatenate(of_one, axis=1)[:, :count] for of_one in zip(*parts, strict=True)]


# Not a function of its own for every experiment, so that who asks twice compiles once.
@partial(environment.jit_quickly, static_argnums=(0, 1))
def _embed(views: Views, encoder: nn.Module, state: TrainState, key: jax.Array, batch: Any) -> jax.Array:
    # Global views come first, and there are at least two.
    global_views, *_ = views(key, None, batch)
    images = global_views[:2].reshape(-1, *global_views.shape[2:])
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    z = encoder.apply(variables, images, train=False).astype(jnp.float32)
    return z.reshape(2, global_views.shape[1], -1)


def alignments(
    config: ConfigDict, experiment: Experiment, states: Sequence[TrainState], console: Console
) -> list[dict[str, float]]:
    """How close the features of two views of a test image are, in every coordinate, see `spectra.alignment`.

    Args:
        config: the whole config.
        experiment: what `build.experiment` made of it.
        states: states whose encoders are asked, on one device of this process.
        console: where images that cannot be read are named.

    Returns:
        Alignments of each encoder by name of the coordinates.

    Raises:
        UserError: if too many images cannot be read.
    """
    found = []
    for state, z_2xNxD in zip(states, held_out_views(config, experiment, states, console), strict=True):
        first, second = (
            jax.device_get(experiment.objective.coordinates(state.params, z_NxD, state.step)) for z_NxD in z_2xNxD
        )
        found.append({on: alignment(first[on], second[on]) for on in first})
    return found
