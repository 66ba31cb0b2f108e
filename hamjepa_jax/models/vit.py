"""Vision transformer encoders: patches and registers attend to each other, and the map of patches is embedded."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from hamjepa_jax.models import heads

# Biases are zero, as Linen has them.
_xavier_uniform = nn.initializers.xavier_uniform()
# Flax counts the patch, and not only its channels, to what a unit of the convolution sums.
_patch_normal = nn.initializers.lecun_normal()
_register_normal = nn.initializers.normal(0.02)
# The fast variance, the mean of squares without the square of the mean, loses its digits where the mean is large.
_layer_norm = partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


def position_embedding(height: int, width: int, dim: int) -> jax.Array:
    """Sines and cosines of the row i and the column j of a patch, [sin(iω) ; cos(iω) ; sin(jω) ; cos(jω)].

    The frequencies are ω_k = 10000^(−4k/C), k = 0 … C/4 − 1. Nothing is learned, so that grids of every size have one,
    and a smaller grid has the top left of a larger one's.

    Args:
        height: rows of patches.
        width: columns of patches.
        dim: number C of channels, a multiple of 4.

    Returns:
        Embeddings (height, width, C), float32.

    References:
        Vaswani et al., "Attention Is All You Need", 2017; Beyer et al., "Better plain ViT baselines for ImageNet-1k",
        2022.
    """
    frequencies = 10000.0 ** (-4.0 * jnp.arange(dim // 4, dtype=jnp.float32) / dim)

    def waves(length: int) -> jax.Array:
        angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    shape = (height, width, dim // 2)
    rows = jnp.broadcast_to(waves(height)[:, None], shape)
    columns = jnp.broadcast_to(waves(width)[None], shape)
    return jnp.concatenate([rows, columns], axis=-1)


class SelfAttention(nn.Module):
    """Attention of every token to all tokens of its image, softmax(QKᵀ/√d)·V in each head of d channels.

    The softmax is float32 in every type.

    Attributes:
        num_heads: number of heads, which share the channels evenly.
        dtype: type of the computation.

    References:
        Vaswani et al., "Attention Is All You Need", 2017.
    """

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_NxTxC: jax.Array) -> jax.Array:
        """Maps tokens (N, T, C) to tokens (N, T, C)."""
        dense = partial(nn.Dense, x_NxTxC.shape[-1], dtype=self.dtype, kernel_init=_xavier_uniform)
        shape = (*x_NxTxC.shape[:2], self.num_heads, -1)
        query, key, value = (dense(name=name)(x_NxTxC).reshape(shape) for name in ("query", "key", "value"))
        attended = jax.nn.dot_product_attention(query, key, value)
        return dense(name="out")(attended.reshape(x_NxTxC.shape))


class MLP(nn.Module):
    """Two dense layers on every token by itself, with four times the channels and an exact GELU, x·Φ(x), between them.

    Attributes:
        dtype: type of the computation.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_NxTxC: jax.Array) -> jax.Array:
        """Maps tokens (N, T, C) to tokens (N, T, C)."""
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=_xavier_uniform)
        dim = x_NxTxC.shape[-1]
        hidden = nn.gelu(dense(4 * dim, name="hidden")(x_NxTxC), approximate=False)
        return dense(dim, name="out")(hidden)


class Block(nn.Module):
    """A pre-norm transformer block, y = x + attention(LN(x)), then y + MLP(LN(y)).

    Attributes:
        num_heads: number of heads of the attention.
        dtype: type of the computation.
    """

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_NxTxC: jax.Array) -> jax.Array:
        """Maps tokens (N, T, C) to tokens (N, T, C)."""
        x = x_NxTxC
        attention = SelfAttention(self.num_heads, self.dtype, name="attention")
        x = x + attention(_layer_norm(dtype=self.dtype, name="attention_norm")(x))
        mlp = MLP(self.dtype, name="mlp")
        return x + mlp(_layer_norm(dtype=self.dtype, name="mlp_norm")(x))


class ViTEncoder(nn.Module):
    """A plain vision transformer without class token: the map of its patches as one embedding per image.

    Patches are embedded by a convolution and get the sines and cosines of their place; registers, tokens without a
    place, stand beside them and are left out of the output. `tokens`: the patches, average-pooled to `token_hw`² tokens
    if given, projected to `token_d_f` channels and batch-normalised, with or without the split into q and p, see
    `heads.token_embedding`. `global`: the average of the patches and a dense layer to `out_dim`.

    Images of every size are taken whose sides are multiples of the patch's. Kernels are Xavier-uniform and biases zero
    in the blocks (He et al. 2022); the patch embedding is LeCun-normal, registers are normal with deviation 0.02.

    Attributes:
        patch_size: pixels along each side of a patch.
        hidden_dim: channels of the tokens, a multiple of 4 and of `num_heads`.
        depth: number of blocks.
        num_heads: number of heads of the attention.
        num_registers: number of registers.
        mode: `tokens` or `global`.
        token_hw: tokens along each axis after pooling, or None for the patches as they are.
        token_d_f: channels of a token of the embedding, even with `split_qp`.
        split_qp: whether the channels of a token split into positions and momenta.
        out_dim: embedding size of the mode `global`.
        dtype: type of the computation; parameters and statistics are float32.
        remat: whether only the inputs of the blocks are kept for the backward pass, which computes the blocks again;
            the compiler undoes this where several devices are CPUs.

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021; Beyer et al., "Better plain ViT baselines for
        ImageNet-1k", 2022; Darcet et al., "Vision Transformers Need Registers", 2024; He et al., "Masked Autoencoders
        Are Scalable Vision Learners", 2022.
    """

    patch_size: int
    hidden_dim: int
    depth: int
    num_heads: int
    num_registers: int
    mode: str
    token_hw: int | None
    token_d_f: int
    split_qp: bool
    out_dim: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images_NxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Embeds normalised images (N, H, W, C) as (N, D); `train` selects batch statistics.

        Raises:
            ValueError: if the image is not made of whole patches, or the channels do not split into heads or into sines
                and cosines.
        """
        self._check_sizes(images_NxHxWxC)
        patches = self._patches(images_NxHxWxC)
        tokens = self._with_registers(patches.reshape(patches.shape[0], -1, self.hidden_dim))
        block = nn.remat(Block) if self.remat else Block
        for number in range(1, self.depth + 1):
            tokens = block(self.num_heads, self.dtype, name=f"block{number}")(tokens)
        normalised = _layer_norm(dtype=self.dtype, name="final_norm")(tokens[:, self.num_registers :])
        x_NxHxWxC = normalised.reshape(patches.shape)
        if self.mode == "global":
            return heads.global_embedding(x_NxHxWxC, out_dim=self.out_dim, dtype=self.dtype)
        return heads.token_embedding(
            x_NxHxWxC,
            token_hw=self.token_hw,
            token_d_f=self.token_d_f,
            split_qp=self.split_qp,
            dtype=self.dtype,
            train=train,
        )

    def _check_sizes(self, images_NxHxWxC: jax.Array) -> None:
        height, width = images_NxHxWxC.shape[1:3]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"{height} × {width} pixels are not whole patches of patch_size {self.patch_size}")
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}")
        if self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of 4, as positions need it to be")

    def _patches(self, images_NxHxWxC: jax.Array) -> jax.Array:
        side = self.patch_size
        embed = nn.Conv(
            self.hidden_dim,
            (side, side),
            strides=side,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=_patch_normal,
            name="patch_embedding",
        )
        patches = embed(images_NxHxWxC)
        return patches + position_embedding(*patches.shape[1:]).astype(patches.dtype)

    def _with_registers(self, patches_NxTxC: jax.Array) -> jax.Array:
        if not self.num_registers:
            return patches_NxTxC
        num_images, _, dim = patches_NxTxC.shape
        registers = self.param("registers", _register_normal, (self.num_registers, dim))
        copies = jnp.broadcast_to(registers.astype(patches_NxTxC.dtype), (num_images, self.num_registers, dim))
        return jnp.concatenate([copies, patches_NxTxC], axis=1)
