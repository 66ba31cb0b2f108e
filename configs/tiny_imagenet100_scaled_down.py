"""Tiny-ImageNet-100 by the protocol of configs/tiny_imagenet100.py, scaled down to a quarter of an hour on a CPU core.

    python -m hamjepa_jax.main --config=configs/tiny_imagenet100_scaled_down.py --config.data.data_dir=DIR_OR_ZIP
    python -m hamjepa_jax.main --config=configs/tiny_imagenet100_scaled_down.py:sigreg --config.data.data_dir=DIR_OR_ZIP

All its 10,000 images, shrunk to 32 pixels. What is scaled down, and why: hamjepa_jax/recipes/scaled_down.py.
"""

import runpy
from pathlib import Path

import ml_collections

from hamjepa_jax.recipes import scaled_down


def get_config(variant: str = "hamjepa") -> ml_collections.ConfigDict:
    """The experiment, scaled down.

    Args:
        variant: such as `hamjepa`, `sigreg` or `mlp-floors`, see `hamjepa_jax.recipes.variants`, without an encoder.

    Returns:
        The config.

    Raises:
        ValueError: for an unknown variant.
    """
    config = runpy.run_path(str(Path(__file__).with_name("tiny_imagenet100.py")))["get_config"](variant)
    scaled_down.scale_down(config)
    return config
