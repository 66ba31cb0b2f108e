"""The optimizer: schedules, the parameter groups, and the optax chain."""

import jax
import jax.numpy as jnp
import optax

CLIP_OVER = ("all", "each", "encoder", "none")
DECAY_OF = ("all", "kernels")


def warmup_cosine(
    *,
    peak: float,
    end_value: float,
    warmup_steps: int,
    total_steps: int,
    warmup_factor: float,
) -> optax.Schedule:
    """Linear warm-up from warmup_factor·peak to the peak, then a cosine to the end value, per step.

    Args:
        peak: learning rate at the end of the warm-up.
        end_value: learning rate after `total_steps`.
        warmup_steps: steps of the warm-up, fewer than `total_steps`.
        total_steps: steps in all.
        warmup_factor: first learning rate as a fraction of the peak.

    Returns:
        The learning rate as a function of the step.
    """
    return optax.warmup_cosine_decay_schedule(warmup_factor * peak, peak, warmup_steps, total_steps, end_value)


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients by min(1, c/(‖g‖ + 10⁻⁶)), as PyTorch does; optax leaves out the 10⁻⁶.

    The published training steps are reproduced to 12 digits with it, and to 6 without.

    Args:
        max_norm: largest norm c, over all gradients that it is applied to.

    Returns:
        The gradient transformation.
    """

    def scale(gradients: optax.Updates, params: optax.Params) -> optax.Updates:
        del params
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda gradient: factor * gradient, gradients)

    return optax.stateless(scale)


def adamw(
    schedules: dict[str, optax.Schedule],
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    clip_norm: float,
    clip_over: str,
    decay_of: str = "all",
    regularizers: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """AdamW with a schedule for each parameter group and a clipped gradient norm.

    Args:
        schedules: the learning rate of each top-level group of the parameters, `encoder` and `predictor`.
        b1: decay of the first moment.
        b2: decay of the second moment.
        weight_decay: decoupled decay, as a fraction of the learning rate.
        clip_norm: largest norm of the clipped gradient.
        clip_over: what the norm is taken over and what is scaled: `all` groups at once, `each` group by itself, the
            `encoder` alone, or `none`.
        decay_of: what decays: `all` parameters, or only `kernels`, those of convolutions and dense layers, and so no
            biases, scales, masses or registers.
        regularizers: the optimizer of a third group, `regularizers`, which is never clipped with the others; None where
            there is nothing in that group.

    Returns:
        The gradient transformation.

    References:
        Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019.
    """
    mask = None if decay_of == "all" else _kernels
    groups = {
        name: optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask)
        for name, schedule in schedules.items()
    }
    clip = clip_by_norm(clip_norm)
    alone = {"each": tuple(groups), "encoder": ("encoder",)}.get(clip_over, ())
    groups |= {name: optax.chain(clip, groups[name]) for name in alone}
    groups["regularizers"] = optax.identity() if regularizers is None else regularizers
    partitioned = optax.partition(groups, lambda params: {name: name for name in params})
    if clip_over != "all":
        return partitioned
    return optax.chain(optax.masked(clip, lambda params: {name: name in schedules for name in params}), partitioned)


def _kernels(params: optax.Params) -> optax.Params:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: path[-1].key == "kernel", params)


def every_so_many_steps(every_steps: int, *, learning_rate: float, clip_norm: float) -> optax.GradientTransformation:
    """AdamW without decay that takes a step, on the clipped gradient of that moment, once in a while.

    Args:
        every_steps: steps of the run between two updates; the first update is made in the first of them.
        learning_rate: its constant learning rate.
        clip_norm: largest norm of the gradient.

    Returns:
        The gradient transformation, whose updates are zero in between.

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107 (the learnable geometry).
    """
    update = optax.chain(clip_by_norm(clip_norm), optax.adamw(learning_rate, weight_decay=0.0))
    return optax.conditionally_mask(update, lambda step: step % every_steps == 0)
