"""The control that is learned: an unconstrained map, trained on exact steps until it is accurate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hamjepa_jax.dynamics.energies import Params
from hamjepa_jax.dynamics.geometry import rollout
from hamjepa_jax.physics.gallery import STEP_MLP, SYSTEMS, System, flow

# The fourth-order scheme with so short steps is exact to ten digits.
EXACT = {"scheme": "yoshida4", "substeps": 32}


class Pairs(NamedTuple):
    """States (N, 2d), and where the exact flow carries each within a step."""

    before: jax.Array
    after: jax.Array


class Learned(NamedTuple):
    """A learned step of one system.

    Attributes:
        params: parameters of `gallery.STEP_MLP`.
        error: root mean square of ‖Φ̂(z) − Φ_τ(z)‖ over states that it was not trained on.
        relative_error: that, over the root mean square of ‖Φ_τ(z) − z‖: the share of a step that it gets wrong.
    """

    params: Params
    error: jax.Array
    relative_error: jax.Array


def visited_pairs(system: System, key: jax.Array, num_pairs: int, *, every: int = 8, visits: int = 32) -> Pairs:
    """States that accurate roll-outs visit, and their exact steps.

    Args:
        system: the system.
        key: a typed PRNG key.
        num_pairs: number N of pairs, a multiple of `visits`.
        every: steps between two visits of one roll-out.
        visits: states taken from each roll-out.

    Returns:
        N pairs.
    """
    starts = system.starts(key, num_pairs // visits)
    before = rollout(
        flow(system, scheme="yoshida4"), starts, lambda z: z, num_applications=every * (visits - 1), every=every
    ).reshape(num_pairs, -1)
    return Pairs(before, flow(system, **EXACT)(before))


def train(pairs: Pairs, key: jax.Array, *, num_steps: int, learning_rate: float) -> Params:
    """Fits z + σ·f(z) to exact steps, mean ‖f(z) − (Φ_τ(z) − z)/σ‖², by Adam on all pairs, its rate a cosine to zero.

    σ is the root mean square of each coordinate's displacement, so that every coordinate counts alike; in the end it
    becomes part of the weights of the last layer.

    Args:
        pairs: what to fit.
        key: a typed PRNG key, for the initial weights.
        num_steps: number of steps of Adam.
        learning_rate: the first one.

    Returns:
        Parameters of `gallery.STEP_MLP`, trained in float32 and returned in float64.
    """
    displacement = pairs.after - pairs.before
    scale = jnp.sqrt(jnp.mean(jnp.square(displacement), axis=0))
    params, before, target = jax.tree.map(
        lambda x: x.astype(jnp.float32),
        (STEP_MLP.init(key, pairs.before.shape[-1]), pairs.before, displacement / scale),
    )
    # A short memory of squared gradients (β₂ = 0.99) halves the error that a few thousand steps leave.
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps), b2=0.99)

    def loss(params):
        return jnp.mean(jnp.square(STEP_MLP.apply(params, before) - before - target))

    def update(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    params, _ = jax.lax.scan(update, (params, optimizer.init(params)), length=num_steps)[0]
    *hidden_layers, output_layer = jax.tree.map(lambda x: x.astype(scale.dtype), params)["layers"]
    return {"layers": [*hidden_layers, jax.tree.map(lambda x: x * scale, output_layer)]}


def learn_steps(key: jax.Array, *, num_pairs: int, num_steps: int, learning_rate: float) -> dict[str, Learned]:
    """Trains the learned step of every system of the gallery.

    Args:
        key: a typed PRNG key.
        num_pairs: number of pairs to train on, and as many others to measure the error on.
        num_steps: number of steps of Adam.
        learning_rate: the first one.

    Returns:
        What was learned, by the name of the system.
    """
    learned = {}
    for index, (name, system) in enumerate(SYSTEMS.items()):
        train_key, held_out_key, init_key = jax.random.split(jax.random.fold_in(key, index), 3)
        pairs = visited_pairs(system, train_key, num_pairs)
        params = train(pairs, init_key, num_steps=num_steps, learning_rate=learning_rate)
        learned[name] = measured(params, visited_pairs(system, held_out_key, num_pairs))
    return learned


def measured(params: Params, pairs: Pairs) -> Learned:
    """Parameters of a learned step with its error on pairs, see `Learned`."""
    miss, displacement = (
        jnp.sqrt(jnp.mean(jnp.sum(jnp.square(x), axis=-1)))
        for x in (STEP_MLP.apply(params, pairs.before) - pairs.after, pairs.after - pairs.before)
    )
    return Learned(params, miss, miss / displacement)
