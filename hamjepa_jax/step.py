"""The jitted steps: one update of the training state, and one pass of the frozen encoder."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from hamjepa_jax.objectives import Metrics
from hamjepa_jax.state import TrainState

# objective(predictor_params, z_VxBxD, key=..., step=...) -> (loss, metrics)
Objective = Callable[..., tuple[jax.Array, Metrics]]
# views(key, images_BxHxWxC, example_ids_B) -> views_VxBxHxWxC
Views = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def embed_views(encoder: nn.Module, params: Any, batch_stats: Any, views_VxBxHxWxC: jax.Array) -> tuple[jax.Array, Any]:
    """Encodes all views as one batch, so that batch normalisation sees the statistics of all of them.

    Args:
        encoder: the encoder.
        params: its parameters.
        batch_stats: its running statistics.
        views_VxBxHxWxC: the views.

    Returns:
        Embeddings (V, B, D), and the new running statistics.
    """
    num_views, batch_size = views_VxBxHxWxC.shape[:2]
    images = views_VxBxHxWxC.reshape(num_views * batch_size, *views_VxBxHxWxC.shape[2:])
    variables = {"params": params, "batch_stats": batch_stats}
    z, updated = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
    return z.reshape(num_views, batch_size, -1), updated.get("batch_stats", {})


def make_train_step(
    *, encoder: nn.Module, views: Views, objective: Objective, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the function that makes one update; jit it with the state donated.

    The update is applied only if the loss and the gradient norm are finite and the batch is the one that the state
    expects. After a step that was not finite the state therefore stays as it was, whatever is dispatched next.

    Args:
        encoder: the encoder.
        views: draws the views of a batch.
        objective: the loss of the embeddings.
        optimizer: the optimizer.

    Returns:
        `train_step(state, key, step, images, example_ids) -> (state, metrics)`: `key` is the key of the run, `step`
        the number of the step that the batch belongs to, `images` the uint8 data set (N, H, W, C) on the device, and
        `example_ids` (B,) the rows of it that make up the batch. Metrics hold the loss, its terms, the gradient norm
        and `finite`.
    """

    def train_step(state, key, step, images, example_ids):
        view_key, objective_key = jax.random.split(key)
        views_VxBxHxWxC = views(jax.random.fold_in(view_key, step), images[example_ids], example_ids)

        def loss_fn(params):
            z_VxBxD, batch_stats = embed_views(encoder, params["encoder"], state.batch_stats, views_VxBxHxWxC)
            loss, metrics = objective(params["predictor"], z_VxBxD, key=objective_key, step=step)
            return loss, (metrics, batch_stats)

        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (metrics, batch_stats)), gradients = gradient_fn(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        gradient_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        applied = finite & (state.step == step)
        updated = TrainState(state.step + 1, params, batch_stats, opt_state)
        state = jax.tree.map(lambda new, old: jnp.where(applied, new, old), updated, state)
        return state, {"loss": loss, **metrics, "gradient_norm": gradient_norm, "finite": finite}

    return train_step


def make_feature_step(
    *, encoder: nn.Module, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """Builds the function that embeds images with the frozen encoder, in evaluation mode and without augmentation.

    Args:
        encoder: the encoder.
        preprocess: uint8 images (B, H, W, C) → what the encoder takes.

    Returns:
        `feature_step(params, batch_stats, images) -> (B, D)`, float32.
    """

    def feature_step(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        return encoder.apply(variables, preprocess(images), train=False).astype(jnp.float32)

    return feature_step
