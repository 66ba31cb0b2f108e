"""Linear probes on frozen features: LayerNorm and a dense layer, AdamW with a cosine to zero."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hamjepa_jax.environment import jit_quickly

# Features that are on the device at a time.
CHUNK_BYTES = 2**26
# Stands for the number of an example where there is none: the last of `used`, which no probe sees.
NO_EXAMPLE = -1
# Added to the variance by the LayerNorm.
EPSILON = 1e-5
# The share of the training examples by which a learning rate is chosen.
VALIDATION_SHARE = 0.1


class Outcome(NamedTuple):
    """What a probe makes of the test images.

    Attributes:
        top1: whether each is classified correctly, bool (..., M).
        top5: whether its class is among the five most likely, bool (..., M).
    """

    top1: np.ndarray
    top5: np.ndarray


class Sweep(NamedTuple):
    """Probes that differ in their learning rate.

    Attributes:
        test: outcomes on the test images, (L, M).
        validation_top1: accuracies on a tenth of the training examples, of probes that were trained without it, (L,).
        predicted: the most likely class of each test image, int32 (L, M).
    """

    test: Outcome
    validation_top1: np.ndarray
    predicted: np.ndarray


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
    params = _fit(
        train_x,
        train_y,
        orders[:, None],
        learning_rates=[learning_rate],
        used=np.ones((1, len(train_x)), bool),
        num_classes=num_classes,
        weight_decay=weight_decay,
        key=jax.random.key(seed),
    )
    outcome = _score(params, test_x, test_y)
    return {"top1": float(outcome.top1.mean()), "top5": float(outcome.top5.mean())}


def learning_rate_sweep(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    num_classes: int,
    learning_rates: Sequence[float],
    weight_decay: float = 1e-6,
    epochs: int = 50,
    batch_size: int = 256,
    seed: int = 0,
) -> Sweep:
    """Linear probes of several learning rates, trained at once on the same batches, see `linear_probe`.

    Each has a twin that does not see a tenth of the training examples and is judged by them, so that a learning rate
    can be chosen without looking at the test images.

    Args:
        train_x: training features (N, D).
        train_y: training labels (N,).
        test_x: test features (M, D).
        test_y: test labels (M,).
        num_classes: number of classes.
        learning_rates: peaks of AdamW.
        weight_decay: decoupled decay of every parameter.
        epochs: passes over the training features.
        batch_size: examples a step, at most N; incomplete batches are dropped.
        seed: seed of the initialisation, of the order, and of the tenth.

    Returns:
        The outcomes, in the order of the learning rates.
    """
    batch_size, count = min(batch_size, len(train_x)), len(learning_rates)
    orders = _epoch_orders(len(train_x), epochs, batch_size, np.random.default_rng(seed))
    held_out = np.random.default_rng([seed, 1]).permutation(len(train_x))[
        : max(1, int(VALIDATION_SHARE * len(train_x)))
    ]
    used = np.ones((2 * count, len(train_x)), bool)
    used[count:, held_out] = False
    params = _fit(
        train_x,
        train_y,
        orders[:, None],
        learning_rates=[*learning_rates, *learning_rates],
        used=used,
        num_classes=num_classes,
        weight_decay=weight_decay,
        key=jax.random.key(seed),
    )
    of_all, of_most = ({name: leaf[:, part] for name, leaf in params.items()} for part in _halves(count))
    held_out = np.sort(held_out)
    validation = _score(of_most, train_x[held_out], train_y[held_out])
    test = _score(of_all, test_x, test_y)
    predicted = np.concatenate([logits.argmax(axis=-1) for logits in _logits_of(of_all, test_x)], axis=-1)
    return Sweep(Outcome(test.top1[0], test.top5[0]), validation.top1[0].mean(axis=-1), predicted[0].astype(np.int32))


def few_label_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    num_classes: int,
    labels_per_class: int | Sequence[int],
    draws: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-6,
    steps: int = 500,
    epochs: int = 50,
    batch_size: int = 256,
    seed: int = 0,
) -> Outcome:
    """The linear probe when only a few labels of each class are known, for several random draws of them.

    Args:
        train_x: training features (N, D).
        train_y: training labels (N,).
        test_x: test features (M, D).
        test_y: test labels (M,).
        num_classes: number of classes.
        labels_per_class: labelled examples of each class, a number or one for every class.
        draws: number of random draws of the labelled examples, the same for every set of features of one seed.
        learning_rate: peak of AdamW, from which a cosine leads to zero.
        weight_decay: decoupled decay of every parameter.
        steps: steps at least.
        epochs: passes over the labelled examples at least.
        batch_size: examples a step; if there are no more, every step sees all of them.
        seed: seed of the draws, of the order and of the initialisation.

    Returns:
        The outcomes of the draws, (draws, M).

    Raises:
        ValueError: if a class has fewer labelled examples than asked for.
    """
    counts = np.bincount(train_y, minlength=num_classes)
    wanted = np.broadcast_to(labels_per_class, num_classes)
    if np.any(counts < wanted):
        scarce = int(np.argmax(counts < wanted))
        raise ValueError(f"labels_per_class: class {scarce} has only {counts[scarce]} examples")
    generator = np.random.default_rng(seed)
    by_class = np.split(np.argsort(train_y, kind="stable"), np.cumsum(counts)[:-1])
    chosen = np.stack(
        [
            np.concatenate([generator.choice(m, n, replace=False) for m, n in zip(by_class, wanted, strict=True)])
            for _ in range(draws)
        ]
    )
    size = chosen.shape[1]
    num_seen = min(batch_size, size)
    passes = max(epochs, -(-steps // (size // num_seen)))
    orders = np.stack([_epoch_orders(size, passes, num_seen, generator) for _ in range(draws)], axis=1)
    # Batches of one size, and so one compilation, for any number of labels.
    orders_SxGxB = np.full((*orders.shape[:2], batch_size), NO_EXAMPLE)
    orders_SxGxB[:, :, :num_seen] = chosen[np.arange(draws)[:, None], orders]
    params = _fit(
        train_x,
        train_y,
        orders_SxGxB,
        learning_rates=[learning_rate],
        used=np.ones((1, len(train_x)), bool),
        num_classes=num_classes,
        weight_decay=weight_decay,
        key=jax.random.key(seed),
    )
    outcome = _score(params, test_x, test_y)
    return Outcome(outcome.top1[:, 0], outcome.top5[:, 0])


def _halves(count: int) -> tuple[slice, slice]:
    return slice(count), slice(count, None)


def _epoch_orders(num_examples: int, epochs: int, batch_size: int, generator: np.random.Generator) -> np.ndarray:
    """Example indices of every step, (steps, batch_size)."""
    steps_per_epoch = num_examples // batch_size
    orders = [generator.permutation(num_examples)[: steps_per_epoch * batch_size] for _ in range(epochs)]
    return np.concatenate(orders).reshape(-1, batch_size)


def _fit(x, y, orders_SxGxB, *, learning_rates, used, num_classes, weight_decay, key) -> dict[str, np.ndarray]:
    """Trains probes in groups, those of a group on the same batches, each with its own learning rate.

    Args:
        x: features (N, D); what a chunk of steps needs is copied to the device, and no more.
        y: labels (N,).
        orders_SxGxB: examples of every step, for every group; `NO_EXAMPLE` in places that are left empty.
        learning_rates: learning rates of the probes of a group, (P,).
        used: which examples each of them sees, bool (P, N).
        num_classes: number of classes.
        weight_decay: decoupled decay.
        key: key of the initialisation.

    Returns:
        Parameters with the leading axes (G, P).
    """
    steps, groups, batch_size = orders_SxGxB.shape
    carry = _initial(key, x.shape[1], num_classes, (groups, len(learning_rates)))
    settings = (np.asarray(learning_rates, np.float32), np.float32(weight_decay), np.int32(steps))
    used = np.pad(used, ((0, 0), (0, 1)))
    # Features that are few lie on the device whole; of many, those that some steps need, in the order of the steps.
    whole = 4 * x.size <= CHUNK_BYTES
    chunk = steps if whole else max(1, min(steps, CHUNK_BYTES // (groups * batch_size * x.shape[1] * 4)))
    table = _table(x, y, used, np.append(np.arange(len(x)), NO_EXAMPLE)) if whole else None
    for start in range(0, steps, chunk):
        order = orders_SxGxB[start : start + chunk]
        # One shape, and so one compilation, for all chunks.
        rows = np.concatenate([order, np.broadcast_to(order[-1:], (chunk - len(order), *order.shape[1:]))])
        if not whole:
            table, rows = _table(x, y, used, rows.ravel()), np.arange(rows.size).reshape(rows.shape)
        # Without waiting, the host would run ahead, and many chunks be in memory.
        carry = jax.block_until_ready(carry)
        carry = _train(carry, *table, rows.astype(np.int32), np.int32(start), np.int32(len(order)), *settings)
    return jax.device_get(carry[0])


def _table(x, y, used, rows):
    """Features (R, D), labels (R,) and `used` (P, R) of some examples."""
    return x[rows].astype(np.float32), y[rows].astype(np.int32), used[:, rows]


@partial(jit_quickly, static_argnums=(1, 2, 3))
def _initial(key, dim, num_classes, leading_axes):
    """The same parameters for all probes, and the moments of Adam."""
    kernel_key, bias_key = jax.random.split(key)
    bound = dim**-0.5
    params = {
        "scale": jnp.ones(dim),
        "offset": jnp.zeros(dim),
        "kernel": jax.random.uniform(kernel_key, (dim, num_classes), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias_key, (num_classes,), minval=-bound, maxval=bound),
    }
    params = {name: jnp.broadcast_to(leaf, (*leading_axes, *leaf.shape)) for name, leaf in params.items()}
    return params, optax.scale_by_adam().init(params)


def _logits(params, normalized):
    """(s·x̂ + o)·W + b as x̂·(s·W) + (o·W + b): the same number, with one product for many probes."""
    kernel = params["scale"][..., :, None] * params["kernel"]
    constant = params["offset"][..., None, :] @ params["kernel"] + params["bias"][..., None, :]
    return normalized @ kernel + constant


def _normalized(x):
    """Rows of mean 0 and variance 1."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / (EPSILON + (centred**2).mean(axis=-1, keepdims=True)) ** 0.5


@partial(jit_quickly, donate_argnums=0)
def _train(carry, x, y, used, rows_SxGxB, start, count, learning_rates, weight_decay, total_steps):
    """Makes `count` steps from `start` on, with rows of the features x (R, D), labels y (R,) and `used` (P, R)."""
    adam = optax.scale_by_adam()
    x = _normalized(x)

    def loss_of_one(params, x, y, used):
        losses = optax.softmax_cross_entropy_with_integer_labels(_logits(params, x), y)
        return jnp.sum(losses * used) / jnp.maximum(jnp.sum(used), 1)

    def loss_of_all(params, x, y, used):
        of_a_group = jax.vmap(loss_of_one, in_axes=(0, None, None, 0))
        return jnp.sum(jax.vmap(of_a_group)(params, x, y, used))

    def step(index, carry):
        params, moments = carry
        rows_GxB = rows_SxGxB[index]
        batch = x[rows_GxB], y[rows_GxB], jnp.moveaxis(used[:, rows_GxB], 0, 1)
        gradients = jax.grad(loss_of_all)(params, *batch)
        directions, moments = adam.update(gradients, moments)
        rates = learning_rates * 0.5 * (1.0 + jnp.cos(jnp.pi * (start + index) / total_steps))

        def updated(leaf, direction):
            rate = rates.reshape(1, -1, *[1] * (leaf.ndim - 2))
            return leaf - rate * (direction + weight_decay * leaf)

        return jax.tree.map(updated, params, directions), moments

    return jax.lax.fori_loop(0, count, step, carry)


def _score(params, x, y) -> Outcome:
    """The outcomes of probes with the leading axes (G, P), as (G, P, M)."""
    ranks, start = [], 0
    for logits in _logits_of(params, x):
        end = start + logits.shape[-2]
        own = np.take_along_axis(logits, y[None, None, start:end, None], axis=-1)
        # How many classes are more likely than the true one.
        ranks.append(np.sum(logits > own, axis=-1))
        start = end
    rank = np.concatenate(ranks, axis=-1)
    return Outcome(rank < 1, rank < 5)


def _logits_of(params, x) -> Iterator[np.ndarray]:
    """The logits (G, P, m, classes) of examples, some at a time."""
    size = max(1, CHUNK_BYTES // (4 * params["kernel"][:, :, 0].size + 4 * x.shape[1]))
    for start in range(0, len(x), size):
        yield _logits(params, _normalized(x[start : start + size].astype(np.float32)))
