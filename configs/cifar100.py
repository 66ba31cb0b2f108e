"""CIFAR-100 by the paper's protocol: ResNet-18 tokens, HamJEPA, its baselines and ablations; 30 epochs.

    python -m hamjepa_jax.main --config=configs/cifar100.py --config.data.data_dir=DIR
    python -m hamjepa_jax.main --config=configs/cifar100.py:sigreg --config.train.epochs=80
    python -m hamjepa_jax.main --config=configs/cifar100.py:mlp_resnet50_corrected

Variants are those of hamjepa_jax/recipes/variants.py.

The data set is that of TFDS, as array_record files in DIR, or in ~/tensorflow_datasets if no directory is given:

    tfds build cifar100 --data_dir=DIR --file_format=array_record

References: Jenkinson Alvarez, arXiv 2605.20107.
"""

import ml_collections
from ml_collections import config_dict

from hamjepa_jax.recipes import encoders, variants


def get_config(variant: str = "hamjepa") -> ml_collections.ConfigDict:
    """The experiment, whole.

    Args:
        variant: such as `hamjepa`, `sigreg` or `mlp-floors`, see `hamjepa_jax.recipes.variants`.

    Returns:
        The config.

    Raises:
        ValueError: for an unknown variant.
    """
    recipe = variants.recipe(variant, form="cifar100")
    config = ml_collections.ConfigDict()
    config.name = "cifar100"
    config.variant = variant

    config.data = dict(
        name="cifar100",
        data_dir=config_dict.placeholder(str),
        class_list=config_dict.placeholder(str),
        train_split="train",
        test_split="test",
        batch_size=512,
        num_global_views=2,
        num_local_views=6 if recipe.multicrop else 0,
        view_size=32,
        local_view_size=16,
        canvas_size=32,
        resident_bytes=2**30,
        num_workers=0,
        max_corrupt=10,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        augmentation=dict(
            name="multi_crop",
            crop_scale=(0.3, 1.0),
            local_crop_scale=(0.05, 0.3),
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
            blur_kernel_size=3,
            solarize=0.2,
            solarize_threshold=128 / 255,
        ),
    )
    config.model = encoders.encoder(recipe.encoder or "resnet18", stem="cifar", patch_size=4) | dict(
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
        epochs=30,
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
        resize=32,
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
        online_probe=dict(every_epochs=5, train_images=5000, test_images=2000, k=20, ridge_penalty=1e-3),
    )
    config.log = dict(every_steps=5, tensorboard=True, wandb=config_dict.placeholder(str))
    return config
