"""Batch normalisation whose running variance is unbiased."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, y = γ·(x − μ)/√(σ² + ε) + β.

    In training μ and σ² (biased) are those of the batch, and the running averages move towards μ and the unbiased
    variance; Flax's own module averages the biased one. Statistics are float32 or wider; the output is of
    the type of the input.

    Attributes:
        momentum: decay of the running averages.
        epsilon: ε.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises x (..., C) with the statistics of the batch (`train`) or the running ones."""
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)

        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(wide, axis=axes)
            # Deviations from the mean sum to zero, so that no gradient flows to the mean from here. Left out, it costs
            # devices that share the batch no exchange of its own. Squaring first would save one more, and lose every
            # digit where the mean is large.
            var = jnp.mean(jnp.square(wide - jax.lax.stop_gradient(mean)), axis=axes)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self.momentum * running_mean.value + (1.0 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1.0 - self.momentum) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return ((wide - mean) * factor + bias).astype(x.dtype)
