"""ImageNet-100 by the paper's protocol: ResNet-18 tokens at 224 pixels; HamJEPA, baselines and ablations; 45 epochs.

    python -m hamjepa_jax.main --config=configs/imagenet100.py --config.data.data_dir=DIR
    python -m hamjepa_jax.main --config=configs/imagenet100.py:hamjepa_multicrop --config.data.data_dir=DIR
    python -m hamjepa_jax.main --config=configs/imagenet100.py:lejepa_vit_s --config.data.data_dir=DIR

Variants are those of hamjepa_jax/recipes/variants.py.

DIR holds the TFDS data set imagenet2012 as array_record files; or it is an image folder (DIR/train/CLASS/*,
DIR/val/CLASS/*, also in parts, DIR/train.X1 ... DIR/train.X4), or a zip file of one, with --config.data.test_split=val.
Of its classes those in imagenet100_classes.txt are taken, the list of Tian et al. Another list is given with
--config.data.class_list=FILE, and all classes are taken with --config.data.class_list= and nothing behind it.

The host cuts the views out of the full images. --config.data.canvas_size=256 sends images shrunk to 256 pixels instead,
and has the device cut them out.

References: Jenkinson Alvarez, arXiv 2605.20107; Tian et al., "Contrastive multiview coding", ECCV 2020.
"""

import ml_collections
from ml_collections import config_dict

from hamjepa_jax.recipes import encoders, variants


def get_config(variant: str = "hamjepa") -> ml_collections.ConfigDict:
    """The experiment, whole.

    Args:
        variant: such as `hamjepa`, `sigreg_multicrop` or `lejepa_vit_s`, see `hamjepa_jax.recipes.variants`.
            `_multicrop` has six local views beside the two global ones.

    Returns:
        The config.

    Raises:
        ValueError: for an unknown variant.
    """
    recipe = variants.recipe(variant, form="imagenet100")
    config = ml_collections.ConfigDict()
    config.name = "imagenet100"
    config.variant = variant

    config.data = dict(
        name="imagenet2012",
        data_dir=config_dict.placeholder(str),
        class_list="configs/imagenet100_classes.txt",
        train_split="train",
        test_split="validation",
        batch_size=256,
        num_global_views=2,
        num_local_views=6 if recipe.multicrop else 0,
        view_size=224,
        local_view_size=96,
        canvas_size=config_dict.placeholder(int),
        resident_bytes=2**30,
        num_workers=config_dict.placeholder(int),
        max_corrupt=10,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augmentation=dict(
            name="multi_crop",
            crop_scale=(0.4, 1.0),
            local_crop_scale=(0.05, 0.4),
            crop_ratio=(3 / 4, 4 / 3),
            flip=0.5,
            jitter=0.8,
            brightness=0.4,
            contrast=0.4,
            saturation=0.2,
            hue=0.1,
            grayscale=0.2,
            blur=0.5,
            blur_sigma=(0.1, 2.0),
            blur_kernel_size=23,
            solarize=0.2,
            solarize_threshold=128 / 255,
        ),
    )
    config.model = encoders.encoder(recipe.encoder or "resnet18", stem="imagenet", patch_size=16) | dict(
        mode="tokens",
        token_hw=8,
        token_d_f=32,
        split_qp=recipe.split_qp,
        out_dim=512,
        dtype="bfloat16",
        remat=False,
    )
    config.predictor = recipe.predictor
    config.objective = recipe.objective
    config.optimizer = recipe.optimizer
    config.train = dict(
        epochs=45,
        max_steps=config_dict.placeholder(int),
        microbatches=1,
        steps_per_dispatch=1,
        compiler_options="",
        max_skipped_steps=0,
        seed=42,
    )
    config.profile = ""
    config.checkpoint = dict(
        every_steps=config_dict.placeholder(int),
        every_minutes=10.0,
        keep=2,
        best_metric=config_dict.placeholder(str),
        best_mode="min",
        grace_seconds=25.0,
    )
    config.mesh = dict(data=-1, fsdp=1)
    config.evaluation = dict(
        checkpoint="newest",
        batch_size=512,
        dtype=config_dict.placeholder(str),
        resize=256,
        ks=(1, 5, 10, 20, 50, 100, 200),
        temperature=0.07,
        probe=dict(
            learning_rate=1e-3,
            learning_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
            weight_decay=1e-6,
            epochs=50,
            batch_size=256,
        ),
        few_label_probe=dict(
            labels_per_class=(1, 5, 10),
            fractions=(0.01, 0.1),
            draws=10,
            learning_rate=1e-2,
            weight_decay=1e-6,
            steps=500,
            epochs=50,
            batch_size=256,
        ),
        online_probe=dict(every_epochs=5, train_images=4000, test_images=1000, k=20, ridge_penalty=1e-3),
    )
    config.log = dict(every_steps=5, tensorboard=True, wandb=config_dict.placeholder(str))
    return config
