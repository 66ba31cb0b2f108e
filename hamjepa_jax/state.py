"""The training state: arrays only, so that it can be donated, sharded and written to disk as it is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from hamjepa_jax.dynamics.predictors import Predictor


class TrainState(NamedTuple):
    """Everything that a step reads and writes.

    Attributes:
        step: int32 scalar, the number of steps made.
        params: {"encoder": ..., "predictor": ..., "regularizers": ...}, the last what regularisers learn, by term.
        batch_stats: running statistics of the encoder.
        opt_state: state of the optimizer.
        skipped: int32 scalar, how many of the steps made no update, because a value was not finite.
        skipped_in_a_row: int32 scalar, how many of the last steps.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: Any
    opt_state: optax.OptState
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def init_state(
    key: jax.Array,
    *,
    encoder: nn.Module,
    predictor: Predictor,
    init_regularizers: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """The state before the first step.

    Args:
        key: a typed PRNG key.
        encoder: the encoder, called on images (N, H, W, C).
        predictor: the predictor of its embeddings.
        init_regularizers: PRNG key → what regularisers learn.
        optimizer: the optimizer of all of them.
        image_shape: (H, W, C) of a view.

    Returns:
        The initial state. Under `jax.eval_shape` this is the abstract state.
    """
    encoder_key, predictor_key = jax.random.split(key)
    regularizers_key = jax.random.fold_in(key, 1)
    images = jnp.zeros((2, *image_shape))
    embeddings, variables = encoder.init_with_output(encoder_key, images, train=False)
    params = {
        "encoder": variables["params"],
        "predictor": predictor.init(predictor_key, embeddings.shape[-1]),
        "regularizers": init_regularizers(regularizers_key),
    }
    batch_stats = variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )
