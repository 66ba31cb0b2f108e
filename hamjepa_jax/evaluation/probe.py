"""Linear probes on frozen features: LayerNorm and a dense layer, AdamW with a cosine to zero."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax


def linear_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    num_classes: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-6,
    epochs: int = 50,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy of a linear classifier trained on frozen features, softmax(W·LayerNorm(x) + b).

    Args:
        train_x: training features (N, D).
        train_y: training labels (N,).
        test_x: test features (M, D).
        test_y: test labels (M,).
        num_classes: number of classes.
        learning_rate: peak of AdamW, from which a cosine leads to zero.
        weight_decay: decoupled decay of every parameter.
        epochs: passes over the training features.
        batch_size: examples a step, at most N; incomplete batches are dropped.
        seed: seed of the initialisation and of the order.

    Returns:
        {"top1", "top5"}, accuracies on the test features as fractions.
    """
    batch_size = min(batch_size, len(train_x))
    orders = _epoch_orders(len(train_x), epochs, batch_size, np.random.default_rng(seed))
    top1, top5 = _fit_and_score(
        jax.random.key(seed),
        *map(jnp.asarray, (train_x, train_y, test_x, test_y, orders)),
        num_classes,
        learning_rate,
        weight_decay,
    )
    return {"top1": float(top1), "top5": float(top5)}


def few_label_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    num_classes: int,
    labels_per_class: int,
    draws: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-6,
    steps: int = 500,
    seed: int = 0,
) -> dict[str, float | int]:
    """Accuracy of the linear probe when only a few labels of each class are known, averaged over random draws.

    Args:
        train_x: training features (N, D).
        train_y: training labels (N,).
        test_x: test features (M, D).
        test_y: test labels (M,).
        num_classes: number of classes.
        labels_per_class: labelled examples of each class.
        draws: number of random draws of the labelled examples, the same for every set of features of one seed.
        learning_rate: peak of AdamW, from which a cosine leads to zero.
        weight_decay: decoupled decay of every parameter.
        steps: steps on all the labelled examples at once.
        seed: seed of the draws and of the initialisation.

    Returns:
        {"labels_per_class", "draws", "top1", "top1_std", "top5"}: means over the draws, and the standard deviation.

    Raises:
        ValueError: if a class has fewer than `labels_per_class` examples.
    """
    counts = np.bincount(train_y, minlength=num_classes)
    if counts.min() < labels_per_class:
        raise ValueError(f"labels_per_class: class {counts.argmin()} has only {counts.min()} examples")
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(train_y == label) for label in range(num_classes)]
    chosen = np.stack(
        [np.concatenate([generator.choice(m, labels_per_class, replace=False) for m in members]) for _ in range(draws)]
    )
    orders = np.broadcast_to(np.arange(chosen.shape[1]), (steps, chosen.shape[1]))
    fit = jax.vmap(_fit_and_score, in_axes=(0, 0, 0, None, None, None, None, None, None))
    top1, top5 = fit(
        jax.random.split(jax.random.key(seed), draws),
        jnp.asarray(train_x)[chosen],
        jnp.asarray(train_y)[chosen],
        *map(jnp.asarray, (test_x, test_y, orders)),
        num_classes,
        learning_rate,
        weight_decay,
    )
    return {
        "labels_per_class": labels_per_class,
        "draws": draws,
        "top1": float(jnp.mean(top1)),
        "top1_std": float(jnp.std(top1, ddof=1)) if draws > 1 else 0.0,
        "top5": float(jnp.mean(top5)),
    }


def _epoch_orders(num_examples: int, epochs: int, batch_size: int, generator: np.random.Generator) -> np.ndarray:
    """Example indices of every step, (steps, batch_size)."""
    steps_per_epoch = num_examples // batch_size
    orders = [generator.permutation(num_examples)[: steps_per_epoch * batch_size] for _ in range(epochs)]
    return np.concatenate(orders).reshape(-1, batch_size)


def _logits(params, x):
    normalized = jax.nn.standardize(x, axis=-1, epsilon=1e-5)
    return (params["scale"] * normalized + params["offset"]) @ params["kernel"] + params["bias"]


@partial(jax.jit, static_argnums=(6, 7, 8))
def _fit_and_score(key, train_x, train_y, test_x, test_y, orders, num_classes, learning_rate, weight_decay):
    dim = train_x.shape[1]
    kernel_key, bias_key = jax.random.split(key)
    bound = dim**-0.5
    params = {
        "scale": jnp.ones(dim),
        "offset": jnp.zeros(dim),
        "kernel": jax.random.uniform(kernel_key, (dim, num_classes), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias_key, (num_classes,), minval=-bound, maxval=bound),
    }
    schedule = optax.cosine_decay_schedule(learning_rate, orders.shape[0])
    optimizer = optax.adamw(schedule, weight_decay=weight_decay)

    def loss_fn(params, indices):
        logits = _logits(params, train_x[indices])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, train_y[indices]))

    def step(carry, indices):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, indices), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), orders)
    logits = _logits(params, test_x)
    own = jnp.take_along_axis(logits, test_y[:, None], axis=1)
    rank = jnp.sum(logits > own, axis=1)
    return jnp.mean(rank < 1), jnp.mean(rank < 5)
