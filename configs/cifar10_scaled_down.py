"""CIFAR-10 by the paper's protocol (configs/cifar10.py), scaled down to a quarter of an hour on one CPU core.

    python -m hamjepa_jax.main --config=configs/cifar10_scaled_down.py --config.data.data_dir=DIR
    python -m hamjepa_jax.main --config=configs/cifar10_scaled_down.py:sigreg --config.data.data_dir=DIR

The first 10,000 training images, in the order of the prepared data set. What is scaled down, and why:
hamjepa_jax/recipes/scaled_down.py.
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
    config = runpy.run_path(str(Path(__file__).with_name("cifar10.py")))["get_config"](variant)
    scaled_down.scale_down(config)
    config.data.train_split = f"train[:{scaled_down.NUM_IMAGES}]"
    return config
