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
# views(key, dataset, batch) -> views_VxBxHxWxC of each resolution; the data set is None if the batch holds the images
Views = Callable[[jax.Array, Any, Any], tuple[jax.Array, ...]]
# loss(params, batch_stats, key, step, dataset, batch) -> (loss, (metrics, batch_stats))
Loss = Callable[..., tuple[jax.Array, tuple[Metrics, Any]]]


def embed_views(
    encoder: nn.Module, params: Any, batch_stats: Any, views: tuple[jax.Array, ...], *, microbatches: int = 1
) -> tuple[jax.Array, Any]:
    """Encodes all views of a resolution as one batch, so that batch normalisation sees the statistics of all of them.

    With several microbatches the encoder sees one after the other, and again in the backward pass, so that activations
    of only one are kept. The embeddings are those of the whole batch, and so is any loss of them and its gradient; only
    batch normalisation, which then sees one microbatch at a time, makes a difference. The running statistics are
    averaged over the microbatches.

    Args:
        encoder: the encoder.
        params: its parameters.
        batch_stats: its running statistics.
        views: views (V, B, H, W, C) of each resolution.
        microbatches: number M of equal parts of the batch; example i is in part i mod M.

    Returns:
        Embeddings of all views, in order (V, B, D), and the new running statistics.
    """

    def embed(views: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        embeddings, statistics = [], batch_stats
        for views_VxBxHxWxC in views:
            num_views, batch_size = views_VxBxHxWxC.shape[:2]
            images = views_VxBxHxWxC.reshape(num_views * batch_size, *views_VxBxHxWxC.shape[2:])
            variables = {"params": params, "batch_stats": statistics}
            z, updated = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
            embeddings.append(z.reshape(num_views, batch_size, -1))
            statistics = updated.get("batch_stats", {})
        return jnp.concatenate(embeddings), statistics

    if microbatches == 1:
        return embed(views)

    def split(views_VxBxHxWxC: jax.Array) -> jax.Array:
        num_views, batch_size, *image_shape = views_VxBxHxWxC.shape
        # Taken with a stride, every microbatch has its share of examples on every device.
        parts = views_VxBxHxWxC.reshape(num_views, batch_size // microbatches, microbatches, *image_shape)
        return jnp.moveaxis(parts, 2, 0)

    z_MxVxbxD, parts_stats = jax.lax.map(jax.checkpoint(embed), tuple(split(group) for group in views))
    _, num_views, _, dim = z_MxVxbxD.shape
    z_VxBxD = jnp.moveaxis(z_MxVxbxD, 0, 2).reshape(num_views, -1, dim)
    return z_VxBxD, jax.tree.map(lambda statistics: jnp.mean(statistics, axis=0), parts_stats)


def make_loss(*, encoder: nn.Module, views: Views, objective: Objective, microbatches: int = 1) -> Loss:
    """Builds the function from parameters and a batch to the loss: draw the views, embed them, compare.

    Args:
        encoder: the encoder.
        views: draws the views of a batch.
        objective: the loss of the embeddings.
        microbatches: parts of the batch that the encoder sees one at a time, see `embed_views`.

    Returns:
        `loss(params, batch_stats, key, step, dataset, batch) -> (loss, (metrics, batch_stats))`: `key` is the key of
        the run, `step` the number of the step that the batch belongs to; `dataset` and `batch` are what `views` takes.
    """

    def loss(params, batch_stats, key, step, dataset, batch):
        view_key, objective_key = jax.random.split(key)
        drawn = views(jax.random.fold_in(view_key, step), dataset, batch)
        z_VxBxD, batch_stats = embed_views(encoder, params["encoder"], batch_stats, drawn, microbatches=microbatches)
        value, metrics = objective(params["predictor"], z_VxBxD, key=objective_key, step=step)
        return value, (metrics, batch_stats)

    return loss


def make_train_step(
    *, loss: Loss, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the function that makes one update; jit it with the state donated.

    The update is applied only if the loss and the gradient norm are finite and the batch is the one that the state
    expects. After a step that was not finite the state therefore stays as it was, whatever is dispatched next.

    Args:
        loss: what `make_loss` returns.
        optimizer: the optimizer.

    Returns:
        `train_step(state, key, step, dataset, batch) -> (state, metrics)`, the arguments being those of the loss.
        Metrics hold the loss, its terms, the gradient norm and `finite`.
    """

    def train_step(state, key, step, dataset, batch):
        (value, (metrics, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.batch_stats, key, step, dataset, batch
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        gradient_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(gradient_norm)
        applied = finite & (state.step == step)
        updated = TrainState(state.step + 1, params, batch_stats, opt_state)
        state = jax.tree.map(lambda new, old: jnp.where(applied, new, old), updated, state)
        return state, {"loss": value, **metrics, "gradient_norm": gradient_norm, "finite": finite}

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
