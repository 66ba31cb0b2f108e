"""The jitted steps: one update of the training state, and one pass of the frozen encoder."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from hamjepa_jax.objectives import Metrics, Objective
from hamjepa_jax.state import TrainState

# views(key, dataset, batch) -> views_VxBxHxWxC of each resolution; the data set is None if the batch holds the images
Views = Callable[[jax.Array, Any, Any], tuple[jax.Array, ...]]
# loss(params, batch_stats, key, step, dataset, batch, taps=None) -> (loss, (metrics, batch_stats))
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
            num_views, batch_size, *image_shape = views_VxBxHxWxC.shape
            # Examples come first, as they are what is split over the devices: with the views of all examples in a row,
            # no device could keep its own, and XLA would gather all images and have every device encode all of them.
            images = jnp.moveaxis(views_VxBxHxWxC, 0, 1).reshape(batch_size * num_views, *image_shape)
            variables = {"params": params, "batch_stats": statistics}
            z, updated = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
            embeddings.append(jnp.moveaxis(z.reshape(batch_size, num_views, -1), 1, 0))
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
        `loss(params, batch_stats, key, step, dataset, batch, taps=None) -> (loss, (metrics, batch_stats))`: `key` is
        the key of the run, `step` the number of the step that the batch belongs to; `dataset` and `batch` are what
        `views` takes, and `taps` what `objectives.weighted_sum` takes.
    """

    def loss(params, batch_stats, key, step, dataset, batch, taps=None):
        view_key, objective_key = jax.random.split(key)
        drawn = views(jax.random.fold_in(view_key, step), dataset, batch)
        z_VxBxD, batch_stats = embed_views(encoder, params["encoder"], batch_stats, drawn, microbatches=microbatches)
        value, metrics = objective.loss(params, z_VxBxD, key=objective_key, step=step, taps=taps)
        return value, (metrics, batch_stats)

    return loss


def make_train_step(
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    terms: Sequence[str] = (),
    max_skipped_steps: int = 0,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the function that makes one step; jit it with the state donated.

    The update is made only if the loss, the gradient norm and what would come of them are finite. A step in which they
    are not is skipped, up to `max_skipped_steps` in a row. One more halts the run: the state then stays as it is,
    whatever is dispatched next, because it expects the batch of a step that never comes.

    Args:
        loss: what `make_loss` returns.
        optimizer: the optimizer.
        terms: names of the terms of the loss whose shares of the gradient are to be told.
        max_skipped_steps: how many steps in a row may be skipped.

    Returns:
        `train_step(state, key, step, dataset, batch) -> (state, metrics)`, the arguments being those of the loss.
        Metrics hold the loss, its terms, the gradient norm, `finite`, `halted`, and `skipped`, the steps that have been
        skipped so far. `gradient_share_TERM` is the norm of the term's gradient with respect to the embeddings, as a
        fraction of the sum of these norms.
    """

    def train_step(state, key, step, dataset, batch):
        taps = {name: jnp.zeros((), jnp.float32) for name in terms}
        (value, (metrics, batch_stats)), (gradients, squared_norms) = jax.value_and_grad(
            loss, argnums=(0, 6), has_aux=True
        )(state.params, state.batch_stats, key, step, dataset, batch, taps or None)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        gradient_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(gradient_norm) & _all_finite((params, batch_stats))
        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        halted = in_a_row > max_skipped_steps
        counted = (state.step == step) & ~halted

        def choose(condition: jax.Array, new: Any, old: Any) -> Any:
            return jax.tree.map(lambda new_leaf, old_leaf: jnp.where(condition, new_leaf, old_leaf), new, old)

        updated = choose(counted & finite, (params, batch_stats, opt_state), state[1:4])
        counters = (state.step + 1, state.skipped + ~finite, in_a_row)
        made, skipped, in_a_row = choose(counted, counters, (state.step, state.skipped, state.skipped_in_a_row))
        told = {"gradient_norm": gradient_norm, "finite": finite, "halted": halted, "skipped": skipped}
        told |= _shares(squared_norms or {})
        return TrainState(made, *updated, skipped, in_a_row), {"loss": value, **metrics, **told}

    return train_step


def _shares(squared_norms: dict[str, jax.Array]) -> Metrics:
    norms = {name: jnp.sqrt(squared) for name, squared in squared_norms.items()}
    total = jnp.maximum(sum(norms.values()), jnp.finfo(jnp.float32).tiny)
    return {f"gradient_share_{name}": norm / total for name, norm in norms.items()}


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def make_feature_step(
    *,
    encoder: nn.Module,
    preprocess: Callable[[jax.Array], jax.Array],
    coordinates: Callable[[Any, jax.Array, jax.Array], dict[str, jax.Array]],
) -> Callable[[TrainState, jax.Array], dict[str, jax.Array]]:
    """Builds the function that embeds images with the frozen encoder, in evaluation mode and without augmentation.

    Args:
        encoder: the encoder.
        preprocess: uint8 images (B, H, W, C) → what the encoder takes.
        coordinates: see `objectives.Objective`.

    Returns:
        `feature_step(state, images) -> {coordinates: (B, d)}`, float32.
    """

    def feature_step(state, images):
        variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
        z = encoder.apply(variables, preprocess(images), train=False).astype(jnp.float32)
        return coordinates(state.params, z, state.step)

    return feature_step
