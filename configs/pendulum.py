"""A world model of a pendulum, from pixels: two views of a film are the pendulum now and a moment later.

    python -m hamjepa_jax.main --config=configs/pendulum.py
    python -m hamjepa_jax.main --config=configs/pendulum.py:mlp

An image stacks two frames, so that motion can be seen in it; the encoder turns it into one position q and one momentum
p. The Hamiltonian flow is asked for the state of the second view, 0.8 units of time after the first, in four steps of
0.2; it learns its potential, and the mass. Nobody tells angles or velocities, with which the run is compared
afterwards: evaluation/world_model.json and .png.

Variants are those of hamjepa_jax/recipes/variants.py, without encoders and local views. Time has a direction here, and
what is predicted is the second view from the first alone, by every predictor; without predictor nothing moves.
"""

import ml_collections
from ml_collections import config_dict

from hamjepa_jax.recipes import variants


def get_config(variant: str = "hamjepa") -> ml_collections.ConfigDict:
    """The experiment, whole.

    Args:
        variant: such as `hamjepa`, `mlp` or `sigreg`, see `hamjepa_jax.recipes.variants`.

    Returns:
        The config.

    Raises:
        ValueError: for an unknown variant.
    """
    recipe = variants.recipe(variant, form="imagenet100")
    if recipe.encoder or "multicrop" in variant:
        raise ValueError(f"variant {variant!r}: films have one encoder, and no local views")
    config = ml_collections.ConfigDict()
    config.name = "pendulum"
    config.variant = variant

    config.data = dict(
        name="pendulum",
        data_dir=config_dict.placeholder(str),
        class_list=config_dict.placeholder(str),
        train_split="train",
        test_split="test",
        batch_size=128,
        num_global_views=2,
        num_local_views=0,
        view_size=32,
        local_view_size=32,
        # A film is as wide as two views.
        canvas_size=64,
        resident_bytes=2**30,
        num_workers=0,
        max_corrupt=0,
        mean=(0.03, 0.03, 0.03),
        std=(0.15, 0.15, 0.15),
        augmentation=dict(name="film"),
    )
    config.model = dict(
        name="resnet",
        block="basic",
        widths=(16, 32, 64),
        depths=(1, 1, 1),
        stem="imagenet",
        mode="global",
        token_layer=3,
        token_hw=config_dict.placeholder(int),
        token_d_f=2,
        split_qp=True,
        out_dim=2,
        dtype="float32",
        remat=False,
    )
    config.predictor = recipe.predictor | dict(
        hidden_dim=64,
        mass="diagonal",
        step_size=0.2,
        num_steps=4,
        # All of the potential is to be learned, from the first step on.
        residual_scale=1.0,
        residual_ramp_epochs=0,
    )
    config.objective = recipe.objective
    if config.objective.prediction.pairing == "first_two":
        # With targets that stay as they are, this one direction does not teach the encoder anything.
        config.objective.prediction.update(bidirectional="none", detach_target=False)
    terms = config.objective.regularizers
    if "logdet_q" in terms:
        # Floors under q and p alone let two coordinates show the same pendulum, as (θ, θ̇) and as (θ̇, −θ). With few
        # dimensions shares of the spectrum say nothing.
        floor = terms.logdet_q.to_dict() | dict(participation_floor=None, eigmax_ceiling=None)
        terms.logdet_qp = floor | dict(on="qp", logdet_floor=-0.1)
        del terms.logdet_q, terms.logdet_p
    config.optimizer = recipe.optimizer | dict(
        learning_rate=2e-3, predictor_learning_rate=config_dict.placeholder(float), warmup_limit=0.1, clip_over="all"
    )
    config.train = dict(
        epochs=24,
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
            learning_rate=1e-2,
            learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
            weight_decay=1e-6,
            epochs=10,
            batch_size=256,
        ),
        few_label_probe=dict(
            labels_per_class=(1, 5, 10),
            fractions=(),
            draws=10,
            learning_rate=1e-2,
            weight_decay=1e-6,
            steps=200,
            epochs=50,
            batch_size=128,
        ),
        online_probe=dict(every_epochs=0, train_images=1000, test_images=500, k=20, ridge_penalty=1e-3),
    )
    config.log = dict(every_steps=16, tensorboard=True, wandb=config_dict.placeholder(str))
    return config
