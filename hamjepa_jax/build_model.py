"""From the config's group `model` to the encoder, and the sizes of what comes out of it."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from hamjepa_jax.errors import UserError, require, require_known, require_numbers
from hamjepa_jax.models.heads import MODES
from hamjepa_jax.models.resnet import BLOCKS, STEMS, ResNetEncoder
from hamjepa_jax.models.vit import ViTEncoder

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def encoder(config: ConfigDict) -> nn.Module:
    """The encoder.

    Args:
        config: the group `model`.

    Returns:
        The encoder.

    Raises:
        UserError: naming the config key, if a value is not allowed.
    """
    require_known(config.name, ENCODERS, "model.name")
    require_known(config.mode, MODES, "model.mode")
    require_known(config.dtype, DTYPES, "model.dtype")
    require(
        config.token_d_f % 2 == 0 or not config.split_qp,
        "model.token_d_f",
        f"must be even, because the channels of a token are split into q and p, got {config.token_d_f}; "
        "take an even number or --config.model.split_qp=false",
    )
    settings = config.to_dict() | {"dtype": DTYPES[config.dtype]}
    del settings["name"]
    return ENCODERS[config.name](config, settings)


def _resnet(config: ConfigDict, settings: dict[str, object]) -> nn.Module:
    require_known(config.stem, STEMS, "model.stem")
    require_known(config.block, BLOCKS, "model.block")
    for key in ("widths", "depths"):
        require_numbers(config[key], int, f"model.{key}")
    stages = len(config.widths)
    require(
        len(config.depths) == stages and stages > 0,
        "model.depths",
        f"must have one number of blocks for each of the {stages} widths, got {config.depths}",
    )
    require(
        1 <= config.token_layer <= stages,
        "model.token_layer",
        f"must be a stage between 1 and {stages}, got {config.token_layer}",
    )
    return ResNetEncoder(**settings | {key: tuple(config[key]) for key in ("widths", "depths")})


def _vit(config: ConfigDict, settings: dict[str, object]) -> nn.Module:
    for key, bound in (("patch_size", 1), ("hidden_dim", 4), ("depth", 1), ("num_heads", 1), ("num_registers", 0)):
        require(config[key] >= bound, f"model.{key}", f"must be at least {bound}, got {config[key]}")
    return ViTEncoder(**settings)


ENCODERS = {"resnet": _resnet, "vit": _vit}


def state_dim(config: ConfigDict, network: nn.Module) -> int:
    """The size D of the embedding, which must be that of views of every resolution.

    Args:
        config: the whole config.
        network: the encoder.

    Returns:
        The size.

    Raises:
        UserError: if views of different resolutions have embeddings of different sizes, or are too small.
    """
    sizes = {config.data.view_size}
    if config.data.num_local_views:
        sizes.add(config.data.local_view_size)
    dims = {}
    for size in sorted(sizes):
        images = jax.ShapeDtypeStruct((2, size, size, len(config.data.mean)), jnp.float32)
        try:
            embedding, _ = jax.eval_shape(partial(network.init_with_output, train=False), jax.random.key(0), images)
        except ValueError as error:
            raise UserError(f"config.model: views of {size} pixels: {str(error).splitlines()[0]}") from None
        dims[size] = embedding.shape[-1]
    require(
        len(set(dims.values())) == 1,
        "model.token_hw",
        "must be given, such as 8, so that views of every size have embeddings of one size; they are of "
        + " and ".join(f"{dim} at {size} pixels" for size, dim in dims.items()),
    )
    return dims[config.data.view_size]


def token_grid(config: ConfigDict, dim: int) -> tuple[int, int] | None:
    """Rows and columns of the tokens in an embedding.

    Args:
        config: the group `model`.
        dim: size D of the embedding.

    Returns:
        (h, w), or None for an embedding without tokens.
    """
    if config.mode != "tokens":
        return None
    side = round((dim // config.token_d_f) ** 0.5)
    return side, side
