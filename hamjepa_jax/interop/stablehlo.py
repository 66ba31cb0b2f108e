"""A trained encoder as a program of its own, which runs wherever jax does, without this package."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from hamjepa_jax.pretrained import Pretrained

PLATFORMS = ("cpu", "cuda", "tpu")


def encoder_program(model: Pretrained) -> bytes:
    """The frozen encoder with its weights, as StableHLO for CPU, CUDA and TPU.

    Args:
        model: the model.

    Returns:
        What `jax.export.deserialize` reads: a function from uint8 images (b, S, S, C) of any number b, cut to size, to
        embeddings float32 (b, D). Normalisation is part of it.
    """
    # The layout of a CPU is of no use elsewhere.
    layout = {"spatial_first": False} if hasattr(model.encoder, "spatial_first") else {}
    variables, encode = jax.device_get(model.variables), model.make_encode(**layout)

    def embed(images: jax.Array) -> jax.Array:
        return encode(jax.tree.map(jnp.asarray, variables), images)

    size, channels = model.config.data.view_size, len(model.config.data.mean)
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.uint8)
    exported: Any = export.export(jax.jit(embed), platforms=PLATFORMS)(images)
    return exported.serialize()
