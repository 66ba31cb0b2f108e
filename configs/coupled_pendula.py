"""A world model of two pendula with a spring in between, by the protocol of configs/pendulum.py.

python -m hamjepa_jax.main --config=configs/coupled_pendula.py
python -m hamjepa_jax.main --config=configs/coupled_pendula.py:mlp
"""

import runpy
from pathlib import Path

import ml_collections


def get_config(variant: str = "hamjepa") -> ml_collections.ConfigDict:
    """The experiment on one pendulum, with two of them, two positions and two momenta.

    Args:
        variant: such as `hamjepa`, `mlp` or `sigreg`, see `hamjepa_jax.recipes.variants`.

    Returns:
        The config.

    Raises:
        ValueError: for an unknown variant.
    """
    config = runpy.run_path(str(Path(__file__).with_name("pendulum.py")))["get_config"](variant)
    config.name = config.data.name = "coupled_pendula"
    config.data.mean, config.data.std = (0.04,) * 3, (0.17,) * 3
    config.model.out_dim = 4
    if config.predictor.name in ("mlp", "residual_mlp"):
        # As near to the number of the flow's parameters as a width comes, 1.1 %.
        config.predictor.width = 62
    config.train.epochs = 36
    return config
