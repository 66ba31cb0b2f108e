"""CIFAR-10 by the protocol of configs/cifar100.py.

    python -m hamjepa_jax.main --config=configs/cifar10.py --config.data.data_dir=DIR
    python -m hamjepa_jax.main --config=configs/cifar10.py:sigreg --config.data.data_dir=DIR

The data set is that of TFDS, as array_record files in DIR, or in ~/tensorflow_datasets if no directory is given:

    tfds build cifar10 --data_dir=DIR --file_format=array_record
"""

import runpy
from pathlib import Path

import ml_collections


def get_config(variant: str = "hamjepa") -> ml_collections.ConfigDict:
    """The experiment on CIFAR-100, with the other data set.

    Args:
        variant: such as `hamjepa`, `sigreg` or `mlp-floors`, see `hamjepa_jax.recipes.variants`.

    Returns:
        The config.

    Raises:
        ValueError: for an unknown variant.
    """
    config = runpy.run_path(str(Path(__file__).with_name("cifar100.py")))["get_config"](variant)
    config.name = config.data.name = "cifar10"
    return config
