"""CIFAR-100 by the paper's protocol: ResNet-18 tokens, HamJEPA or its SIGReg baseline; 30 epochs.

    python -m hamjepa_jax.main --config=configs/cifar100.py --config.data.data_dir=DIR
    python -m hamjepa_jax.main --config=configs/cifar100.py:sigreg --config.train.epochs=80

The data set is that of TFDS, as array_record files in DIR, or in ~/tensorflow_datasets if no directory is given:

    tfds build cifar100 --data_dir=DIR --file_format=array_record

References: Jenkinson Alvarez, arXiv 2605.20107.
"""

import ml_collections
from ml_collections import config_dict

VARIANTS = ("hamjepa", "sigreg")


def get_config(variant: str = "hamjepa") -> ml_collections.ConfigDict:
    """The experiment, whole.

    Args:
        variant: `hamjepa` or `sigreg`.

    Returns:
        The config.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; known variants: {', '.join(VARIANTS)}")
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
        num_local_views=0,
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
    config.model = dict(
        widths=(64, 128, 256, 512),
        depths=(2, 2, 2, 2),
        stem="cifar",
        mode="tokens",
        token_layer=3,
        token_hw=8,
        token_d_f=32,
        split_qp=variant == "hamjepa",
        out_dim=512,
        dtype="bfloat16",
        remat=False,
    )
    config.predictor = dict(
        name="hamiltonian_flow" if variant == "hamjepa" else "identity",
        energy="separable_mlp",
        hidden_dim=256,
        depth=2,
        base_coeff=0.1,
        scheme="leapfrog",
        step_size=0.05,
        num_steps=2,
        residual_scale=0.02,
        residual_ramp_epochs=10,
    )
    config.objective = {"hamjepa": hamjepa, "sigreg": sigreg}[variant]()
    config.optimizer = dict(
        learning_rate=5e-4,
        predictor_learning_rate=config_dict.placeholder(float),
        end_factor=1e-3,
        warmup_epochs=10,
        warmup_factor=0.01,
        b1=0.9,
        b2=0.999,
        weight_decay=5e-4,
        clip_norm=1.0,
        clip_over="all" if variant == "hamjepa" else "none",
    )
    config.train = dict(epochs=30, max_steps=config_dict.placeholder(int), microbatches=1, max_skipped_steps=0, seed=42)
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
        resize=32,
        ks=(1, 5, 10, 20, 50, 100, 200),
        probe=dict(learning_rate=1e-3, weight_decay=1e-6, epochs=50, batch_size=256),
        few_label_probe=dict(labels_per_class=5, draws=10, learning_rate=1e-2, weight_decay=1e-6, steps=500),
    )
    config.log = dict(every_steps=5)
    return config


def hamjepa() -> dict:
    """HamJEPA as published for CIFAR-100."""
    return dict(
        name="hamjepa",
        match="q",
        p_weight=0.2,
        bidirectional="inverse",
        detach_target=True,
        energy_weight=0.0,
        budget_weight=0.2,
        q_target=1.0,
        p_target=1.0,
        variance_weight=0.5,
        variance_on=("q", "p"),
        std_floor=0.2,
        logdet_weight=0.5,
        projection_rank=128,
        projection_every=16,
        logdet_floor=-1.5,
        participation_floor_q=0.12,
        participation_floor_p=0.16,
        eigmax_ceiling_q=0.35,
        eigmax_ceiling_p=0.30,
        mean_weight=0.05,
    )


def sigreg() -> dict:
    """LeJEPA in the form published as HamJEPA's baseline."""
    return dict(
        name="lejepa",
        form="sum",
        sigreg_weight=0.02,
        num_directions=64,
        num_points=9,
        t_max=3.0,
        weight="gaussian",
    )
