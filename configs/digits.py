"""Scikit-learn's digits: 1,797 real 8×8 images that need no download; a minute on two CPU cores.

    python -m hamjepa_jax.main --config=configs/digits.py
    python -m hamjepa_jax.main --config=configs/digits.py:sigreg
    python -m hamjepa_jax.main --config=configs/digits.py:mlp-sigreg

Variants are those of hamjepa_jax/recipes/variants.py, without encoders and local views. The objectives and the
optimizer are those of the paper's CIFAR-100 protocol, at a higher learning rate and for as many steps as fit into a
minute; the encoder is a small ResNet at the images' own resolution.
"""

import ml_collections
from ml_collections import config_dict

from hamjepa_jax.recipes import variants


def get_config(variant: str = "hamjepa") -> ml_collections.ConfigDict:
    """The experiment, whole.

    Args:
        variant: such as `hamjepa`, `sigreg` or `mlp-floors`, see `hamjepa_jax.recipes.variants`.

    Returns:
        The config.

    Raises:
        ValueError: for an unknown variant.
    """
    # HamJEPA's baseline takes 64 directions and 9 knots, which did worse on digits than LeJEPA's own.
    recipe = variants.recipe(variant, form="cifar100", num_directions=1024, num_points=17)
    if recipe.encoder or "multicrop" in variant:
        raise ValueError(f"variant {variant!r}: digits have one encoder, and no local views")
    config = ml_collections.ConfigDict()
    config.name = "digits"
    config.variant = variant

    config.data = dict(
        name="digits",
        data_dir=config_dict.placeholder(str),
        class_list=config_dict.placeholder(str),
        train_split="train",
        test_split="test",
        batch_size=256,
        num_global_views=2,
        num_local_views=0,
        view_size=8,
        local_view_size=8,
        canvas_size=8,
        resident_bytes=2**30,
        num_workers=0,
        max_corrupt=0,
        mean=(0.305,),
        std=(0.376,),
        augmentation=dict(
            name="digit",
            max_rotation=15.0,
            max_log_scale=0.15,
            max_shift=0.08,
            max_contrast=0.3,
            noise_std=0.05,
        ),
    )
    config.model = dict(
        name="resnet",
        block="basic",
        widths=(32, 64),
        depths=(1, 1),
        stem="cifar",
        mode="tokens",
        token_layer=2,
        token_hw=config_dict.placeholder(int),
        token_d_f=32,
        split_qp=recipe.split_qp,
        out_dim=512,
        dtype="float32",
        remat=False,
    )
    config.predictor = recipe.predictor
    config.objective = recipe.objective
    config.optimizer = recipe.optimizer | dict(learning_rate=5e-3, warmup_epochs=3)
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
        resize=8,
        ks=(1, 5, 10, 20, 50, 100, 200),
        temperature=0.07,
        probe=dict(
            learning_rate=1e-2,
            learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
            weight_decay=1e-6,
            epochs=200,
            batch_size=256,
        ),
        few_label_probe=dict(
            labels_per_class=(1, 5, 10),
            # One and ten per cent of so few are one label and thirteen of each class.
            fractions=(),
            draws=10,
            learning_rate=1e-2,
            weight_decay=1e-6,
            steps=200,
            epochs=50,
            batch_size=128,
        ),
        online_probe=dict(every_epochs=10, train_images=1000, test_images=450, k=20, ridge_penalty=1e-3),
    )
    config.log = dict(every_steps=5, tensorboard=True, wandb=config_dict.placeholder(str))
    return config
