"""ResNet token encoders: the feature map of a stage, projected to a few channels, is the embedding."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hamjepa_jax.models.batch_norm import BatchNorm

STEMS = ("cifar", "imagenet")
MODES = ("tokens", "global")

_fan_out_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _uniform(*, fan_in: int) -> nn.initializers.Initializer:
    """Uniform in ±1/√fan_in."""
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


class BasicBlock(nn.Module):
    """The residual block of ResNet-18 and -34: two 3×3 convolutions beside a 1×1 or identity shortcut.

    Attributes:
        features: number of output channels.
        stride: stride of the first convolution and of the shortcut.
        dtype: type of the computation.
    """

    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps x (N, H, W, C) to (N, H/stride, W/stride, features)."""
        conv = partial(nn.Conv, self.features, use_bias=False, dtype=self.dtype, kernel_init=_fan_out_normal)
        y = conv(kernel_size=(3, 3), strides=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train=train))
        y = conv(kernel_size=(3, 3), padding=1, name="conv2")(y)
        y = BatchNorm(name="bn2")(y, train=train)
        if x.shape[-1] != self.features or self.stride != 1:
            x = conv(kernel_size=(1, 1), strides=self.stride, name="shortcut_conv")(x)
            x = BatchNorm(name="shortcut_bn")(x, train=train)
        return nn.relu(x + y)


class ResNetEncoder(nn.Module):
    """A headless ResNet: tokens of a stage, or the globally pooled last stage, as one embedding per image.

    `tokens`: the feature map after stage `token_layer`, average-pooled to `token_hw`² tokens if given, projected by a
    1×1 convolution to `token_d_f` channels and batch-normalised. With `split_qp` the first half of the channels of
    every token is q and the second half p, each flattened in (h, w, channel) order, z = [q ; p]; without it the tokens
    are flattened as they are. `global`: average pool after the last stage and a dense layer to `out_dim`.

    Attributes:
        widths: channels of the stages; every stage after the first halves the resolution.
        depths: residual blocks of the stages.
        stem: `cifar` (3×3, stride 1) or `imagenet` (7×7, stride 2, then a 3×3 max-pool of stride 2).
        mode: `tokens` or `global`.
        token_layer: stage, counted from 1, that gives the tokens; later stages are not built.
        token_hw: tokens along each axis after pooling, or None for the map as it is.
        token_d_f: channels of a token, even with `split_qp`.
        split_qp: whether the channels of a token split into positions and momenta.
        out_dim: embedding size of the mode `global`.
        dtype: type of the computation; parameters and statistics are float32.
        remat: whether only the images and the inputs of the stages are kept for the backward pass, which computes the
            stem and the stages again; the compiler undoes this on the CPU.

    References:
        He et al., "Deep Residual Learning for Image Recognition", 2016; Jenkinson Alvarez, arXiv 2605.20107.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stem: str
    mode: str
    token_layer: int
    token_hw: int | None
    token_d_f: int
    split_qp: bool
    out_dim: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images_NxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Embeds normalised images (N, H, W, C) as (N, D); `train` selects batch statistics."""
        x = self._part(ResNetEncoder._stem, images_NxHxWxC, train=train)
        num_stages = self.token_layer if self.mode == "tokens" else len(self.widths)
        for stage in range(num_stages):
            x = self._part(ResNetEncoder._stage, x, stage=stage, train=train)
        if self.mode == "global":
            uniform = _uniform(fan_in=x.shape[-1])
            head = nn.Dense(self.out_dim, dtype=self.dtype, kernel_init=uniform, bias_init=uniform, name="head")
            return head(jnp.mean(x, axis=(1, 2)))
        return self._tokens(x, train=train)

    def _part(self, part: Callable[..., jax.Array], x: jax.Array, **settings: Any) -> jax.Array:
        compute = partial(part, **settings)
        return (nn.remat(compute) if self.remat else compute)(self, x)

    def _stem(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = partial(nn.Conv, self.widths[0], use_bias=False, dtype=self.dtype, name="stem_conv")
        if self.stem == "cifar":
            x = conv(kernel_size=(3, 3), padding=1, kernel_init=_uniform(fan_in=9 * x.shape[-1]))(x)
        else:
            x = conv(kernel_size=(7, 7), strides=2, padding=3, kernel_init=_fan_out_normal)(x)
        x = nn.relu(BatchNorm(name="stem_bn")(x, train=train))
        return x if self.stem == "cifar" else nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    def _stage(self, x: jax.Array, *, stage: int, train: bool) -> jax.Array:
        for block in range(self.depths[stage]):
            stride = 2 if stage > 0 and block == 0 else 1
            name = f"stage{stage + 1}_block{block + 1}"
            x = BasicBlock(self.widths[stage], stride, self.dtype, name=name)(x, train=train)
        return x

    def _tokens(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.token_hw is not None and x.shape[1:3] != (self.token_hw, self.token_hw):
            x = adaptive_average_pool(x, self.token_hw)
        uniform = _uniform(fan_in=x.shape[-1])
        conv = nn.Conv(self.token_d_f, (1, 1), use_bias=False, dtype=self.dtype, kernel_init=uniform, name="token_conv")
        tokens = BatchNorm(name="token_bn")(conv(x), train=train)
        if not self.split_qp:
            return tokens.reshape(tokens.shape[0], -1)
        q, p = jnp.split(tokens, 2, axis=-1)
        return jnp.concatenate([q.reshape(q.shape[0], -1), p.reshape(p.shape[0], -1)], axis=-1)
