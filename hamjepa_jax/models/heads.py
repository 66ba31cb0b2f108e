"""From a feature map to the embedding: projected tokens, or a dense layer of the average."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from hamjepa_jax.models.batch_norm import BatchNorm

MODES = ("tokens", "global")


def uniform(*, fan_in: int) -> nn.initializers.Initializer:
    """Uniform in ±1/√fan_in.

    Args:
        fan_in: number of inputs that a unit sums.

    Returns:
        The initialiser, of kernels and of biases.
    """
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def adaptive_average_pool(x_NxHxWxC: jax.Array, size: int) -> jax.Array:
    """Averages a feature map into size × size bins; bin i covers rows ⌊i·H/n⌋ up to ⌈(i+1)·H/n⌉, so bins may overlap.

    Args:
        x_NxHxWxC: feature maps.
        size: number n of bins along each axis.

    Returns:
        Pooled maps (N, n, n, C).
    """

    def bins(length: int) -> jax.Array:
        starts = [i * length // size for i in range(size)]
        ends = [-(-(i + 1) * length // size) for i in range(size)]
        rows = [
            [(start <= j < end) / (end - start) for j in range(length)] for start, end in zip(starts, ends, strict=True)
        ]
        return jnp.asarray(rows, x_NxHxWxC.dtype)

    _, height, width, _ = x_NxHxWxC.shape
    return jnp.einsum("nhwc,ih,jw->nijc", x_NxHxWxC, bins(height), bins(width))


def token_embedding(
    x_NxHxWxC: jax.Array, *, token_hw: int | None, token_d_f: int, split_qp: bool, dtype: jnp.dtype, train: bool
) -> jax.Array:
    """Projects a feature map by a 1×1 convolution and normalises it: tokens, flattened into one embedding per image.

    Called in an encoder, whose parameters `token_conv` and `token_bn` become. With the split the first half of the
    channels of every token is q and the second half p, each flattened in (h, w, channel) order, z = [q ; p]; without it
    the tokens are flattened as they are.

    Args:
        x_NxHxWxC: feature maps.
        token_hw: tokens along each axis after pooling, or None for the map as it is.
        token_d_f: channels of a token, even with `split_qp`.
        split_qp: whether the channels of a token split into positions and momenta.
        dtype: type of the computation.
        train: whether the statistics are those of the batch or the running ones.

    Returns:
        Embeddings (N, h·w·d_f).

    References:
        Jenkinson Alvarez, "Beyond Isotropy in JEPAs", arXiv 2605.20107.
    """
    x = x_NxHxWxC
    if token_hw is not None and x.shape[1:3] != (token_hw, token_hw):
        x = adaptive_average_pool(x, token_hw)
    kernel_init = uniform(fan_in=x.shape[-1])
    conv = nn.Conv(token_d_f, (1, 1), use_bias=False, dtype=dtype, kernel_init=kernel_init, name="token_conv")
    tokens = BatchNorm(name="token_bn")(conv(x), train=train)
    if not split_qp:
        return tokens.reshape(tokens.shape[0], -1)
    q, p = jnp.split(tokens, 2, axis=-1)
    return jnp.concatenate([q.reshape(q.shape[0], -1), p.reshape(p.shape[0], -1)], axis=-1)


def global_embedding(x_NxHxWxC: jax.Array, *, out_dim: int, dtype: jnp.dtype) -> jax.Array:
    """A dense layer of the average over the feature map, which becomes `head` in the encoder that calls this.

    Args:
        x_NxHxWxC: feature maps.
        out_dim: embedding size.
        dtype: type of the computation.

    Returns:
        Embeddings (N, out_dim).
    """
    init = uniform(fan_in=x_NxHxWxC.shape[-1])
    head = nn.Dense(out_dim, dtype=dtype, kernel_init=init, bias_init=init, name="head")
    return head(jnp.mean(x_NxHxWxC, axis=(1, 2)))
