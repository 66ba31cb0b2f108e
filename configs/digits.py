"""Scikit-learn's digits: 1,797 real 8×8 images that need no download; a minute on two CPU cores.

    python -m hamjepa_jax.main --config=configs/digits.py
    python -m hamjepa_jax.main --config=configs/digits.py:sigreg

The objectives and the optimizer are those of the paper's CIFAR-100 protocol, at a higher learning rate and for as many
steps as fit into a minute; the encoder is a small ResNet at the images' own resolution.
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
        widths=(32, 64),
        depths=(1, 1),
        stem="cifar",
        mode="tokens",
        token_layer=2,
        token_hw=config_dict.placeholder(int),
        token_d_f=32,
        split_qp=variant == "hamjepa",
        out_dim=512,
        dtype="float32",
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
        learning_rate=5e-3,
        predictor_learning_rate=config_dict.placeholder(float),
        end_factor=1e-3,
        warmup_epochs=3,
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
        resize=8,
        ks=(1, 5, 10, 20, 50, 100, 200),
        probe=dict(learning_rate=1e-2, weight_decay=1e-6, epochs=200, batch_size=256),
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
    """LeJEPA in the form published with HamJEPA, with LeJEPA's own directions and knots.

    HamJEPA's baseline takes 64 directions and 9 knots, which did worse on digits.
    """
    return dict(
        name="lejepa",
        form="sum",
        sigreg_weight=0.02,
        num_directions=1024,
        num_points=17,
        t_max=3.0,
        weight="gaussian",
    )
