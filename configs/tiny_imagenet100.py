"""100 classes of Tiny-ImageNet at 64 pixels, by the ImageNet form of the paper's protocol (configs/imagenet100.py).

    python -m hamjepa_jax.main --config=configs/tiny_imagenet100.py --config.data.data_dir=DIR_OR_ZIP
    python -m hamjepa_jax.main --config=configs/tiny_imagenet100.py:sigreg --config.data.data_dir=DIR_OR_ZIP

DIR_OR_ZIP is an image folder (DIR/train/CLASS/*, DIR/val/CLASS/*), or a zip file of one, which need not be unpacked.
The whole of Tiny-ImageNet, with its 200 classes, works just as well.

The paper has no experiment at this size. What follows from the size is ours: the stem of the CIFAR form, which keeps
the resolution, and a blur as wide, in proportion, as that at 224 pixels.
"""

import runpy
from pathlib import Path

import ml_collections
from ml_collections import config_dict


def get_config(variant: str = "hamjepa") -> ml_collections.ConfigDict:
    """The experiment on ImageNet-100, with the other data set and at its size.

    Args:
        variant: such as `hamjepa`, `sigreg_multicrop` or `lejepa_vit_s`, see `hamjepa_jax.recipes.variants`.
            `_multicrop` has six local views beside the two global ones.

    Returns:
        The config.

    Raises:
        ValueError: for an unknown variant.
    """
    config = runpy.run_path(str(Path(__file__).with_name("imagenet100.py")))["get_config"](variant)
    config.name = "tiny_imagenet100"
    config.data.update(
        name="tiny_imagenet100",
        class_list=config_dict.placeholder(str),
        test_split="val",
        view_size=64,
        local_view_size=32,
        canvas_size=64,
        num_workers=0,
    )
    config.data.augmentation.blur_kernel_size = 7
    if config.model.name == "resnet":
        config.model.stem = "cifar"
    else:
        config.model.patch_size = 8
    config.evaluation.resize = 64
    return config
