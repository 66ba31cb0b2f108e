"""ResNet token encoders: the feature map of a stage, projected to a few channels, is the embedding."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hamjepa_jax import environment
from hamjepa_jax.models import heads
from hamjepa_jax.models.batch_norm import BatchNorm
from hamjepa_jax.models.convolution import Conv, computed_once, max_pool

STEMS = ("cifar", "imagenet")

_fan_out_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
    """The residual block of ResNet-18 and -34: two 3×3 convolutions beside a 1×1 or identity shortcut.

    Attributes:
        features: number of output channels.
        stride: stride of the first convolution and of the shortcut.
        dtype: type of the computation.
        spatial_first: whether maps are (H, W, N, C).
    """

    features: int
    stride: int
    dtype: jnp.dtype
    spatial_first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps x to `features` maps, H/stride × W/stride."""
        layout = {"spatial_first": self.spatial_first}
        conv = partial(Conv, self.features, dtype=self.dtype, kernel_init=_fan_out_normal, **layout)
        y = conv(3, self.stride, name="conv1")(x)
        y = computed_once(nn.relu(BatchNorm(name="bn1")(y, train=train)), **layout)
        y = conv(3, 1, name="conv2")(y)
        y = BatchNorm(name="bn2")(y, train=train)
        if x.shape[-1] != self.features or self.stride != 1:
            x = conv(1, self.stride, name="shortcut_conv")(x)
            x = BatchNorm(name="shortcut_bn")(x, train=train)
        return computed_once(nn.relu(x + y), **layout)


class BottleneckBlock(nn.Module):
    """The residual block of ResNet-50: a 3×3 convolution between two 1×1 ones, beside a 1×1 or identity shortcut.

    The stride is that of the 3×3 convolution, so that no pixel is left out ("version 1.5"; He et al. have it in the
    first convolution).

    Attributes:
        features: number of channels of the 3×3 convolution; the block has four times as many output channels.
        stride: stride of the 3×3 convolution and of the shortcut.
        dtype: type of the computation.
        spatial_first: whether maps are (H, W, N, C).
    """

    features: int
    stride: int
    dtype: jnp.dtype
    spatial_first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps x to 4·`features` maps, H/stride × W/stride."""
        layout = {"spatial_first": self.spatial_first}
        conv = partial(Conv, dtype=self.dtype, kernel_init=_fan_out_normal, **layout)
        y = conv(self.features, 1, 1, name="conv1")(x)
        y = computed_once(nn.relu(BatchNorm(name="bn1")(y, train=train)), **layout)
        y = conv(self.features, 3, self.stride, name="conv2")(y)
        y = computed_once(nn.relu(BatchNorm(name="bn2")(y, train=train)), **layout)
        y = conv(4 * self.features, 1, 1, name="conv3")(y)
        y = BatchNorm(name="bn3")(y, train=train)
        if x.shape[-1] != 4 * self.features or self.stride != 1:
            x = conv(4 * self.features, 1, self.stride, name="shortcut_conv")(x)
            x = BatchNorm(name="shortcut_bn")(x, train=train)
        return computed_once(nn.relu(x + y), **layout)


BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}


class ResNetEncoder(nn.Module):
    """A headless ResNet: tokens of a stage, or the globally pooled last stage, as one embedding per image.

    `tokens`: the feature map after stage `token_layer`, average-pooled to `token_hw`² tokens if given, projected by a
    1×1 convolution to `token_d_f` channels and batch-normalised, with or without the split into q and p, see
    `heads.token_embedding`. `global`: average pool after the last stage and a dense layer to `out_dim`.

    With the widths 64, 128, 256 and 512, `basic` blocks and the depths 2, 2, 2, 2 make a ResNet-18, 3, 4, 6, 3 a
    ResNet-34, and `bottleneck` blocks and the depths 3, 4, 6, 3 a ResNet-50.

    Attributes:
        widths: channels of the 3×3 convolutions of the stages; every stage after the first halves the resolution.
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
            stem and the stages again; the compiler undoes this where several devices are CPUs.
        spatial_first: whether maps are (H, W, N, C) and convolutions matrix products; None where there is one device,
            which is a CPU.
        block: `basic`, two 3×3 convolutions, or `bottleneck`, a 3×3 one between two 1×1 ones that lead from and to
            four times the width.

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
    spatial_first: bool | None = None
    block: str = "basic"

    @nn.compact
    def __call__(self, images_NxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Embeds normalised images (N, H, W, C) as (N, D); `train` selects batch statistics."""
        spatial_first = environment.on_one_cpu() if self.spatial_first is None else self.spatial_first
        settings = {"spatial_first": spatial_first, "train": train}
        x = jnp.moveaxis(images_NxHxWxC, 0, 2) if spatial_first else images_NxHxWxC
        x = self._part(ResNetEncoder._stem, x, **settings)
        num_stages = self.token_layer if self.mode == "tokens" else len(self.widths)
        for stage in range(num_stages):
            x = self._part(ResNetEncoder._stage, x, stage=stage, **settings)
        x = jnp.moveaxis(x, 2, 0) if spatial_first else x
        if self.mode == "global":
            return heads.global_embedding(x, out_dim=self.out_dim, dtype=self.dtype)
        return heads.token_embedding(
            x,
            token_hw=self.token_hw,
            token_d_f=self.token_d_f,
            split_qp=self.split_qp,
            dtype=self.dtype,
            train=train,
        )

    def _part(self, part: Callable[..., jax.Array], x: jax.Array, **settings: Any) -> jax.Array:
        compute = partial(part, **settings)
        return (nn.remat(compute) if self.remat else compute)(self, x)

    def _stem(self, x: jax.Array, *, spatial_first: bool, train: bool) -> jax.Array:
        conv = partial(Conv, self.widths[0], dtype=self.dtype, spatial_first=spatial_first, name="stem_conv")
        if self.stem == "cifar":
            x = conv(3, 1, kernel_init=heads.uniform(fan_in=9 * x.shape[-1]))(x)
        else:
            x = conv(7, 2, kernel_init=_fan_out_normal)(x)
        x = nn.relu(BatchNorm(name="stem_bn")(x, train=train))
        x = x if self.stem == "cifar" else max_pool(x, spatial_first=spatial_first)
        return computed_once(x, spatial_first=spatial_first)

    def _stage(self, x: jax.Array, *, stage: int, spatial_first: bool, train: bool) -> jax.Array:
        for number in range(self.depths[stage]):
            stride = 2 if stage > 0 and number == 0 else 1
            name = f"stage{stage + 1}_block{number + 1}"
            block = BLOCKS[self.block](self.widths[stage], stride, self.dtype, spatial_first, name=name)
            x = block(x, train=train)
        return x
