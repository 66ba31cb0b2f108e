"""Shipped experiments, on images that are there only to be counted."""

import os
import runpy
from pathlib import Path
from typing import Any

from PIL import Image

from hamjepa_jax import build


def load(
    name: str, variant: str, folder: Path, *, batch_size: int | None = None, dtype: str | None = None
) -> tuple[Any, build.Experiment]:
    """Builds a shipped experiment. The current directory is that of the repository.

    Args:
        name: name of a file in configs.
        variant: its variant.
        folder: where the images are made.
        batch_size: examples in a batch, or None for those of the config.
        dtype: type that the encoder computes in, or None for that of the config.

    Returns:
        The config and the experiment.
    """
    config = runpy.run_path(f"configs/{name}.py")["get_config"](variant)
    config.data.batch_size = batch_size or config.data.batch_size
    config.model.dtype = dtype or config.model.dtype
    for split in (config.data.train_split, config.data.test_split):
        images = folder / split / "gray"
        images.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1)).save(images / "0.png")
        for number in range(1, config.data.batch_size):
            (images / f"{number}.png").unlink(missing_ok=True)
            os.link(images / "0.png", images / f"{number}.png")
    config.data.data_dir, config.data.class_list = str(folder), None
    # An epoch of one step would end before the warm-up.
    config.optimizer.warmup_epochs = 0
    return config, build.experiment(config)
