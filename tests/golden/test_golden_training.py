"""Twelve steps of each published recipe, from seeded weights and on seeded images.

The recipes are chaotic: a rounding error in the first step is a percent of the loss seven steps later. The trajectory
is therefore followed in double precision; in single precision a few steps start from states on that trajectory.

Double precision takes the convolutions that the library makes itself on one CPU, as those of XLA are several times
slower in it; single precision takes those of XLA.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax import objectives, optim
from hamjepa_jax.dynamics import energies, predictors
from hamjepa_jax.interop.torch_checkpoint import encoder_from_state_dict, predictor_from_state_dict
from hamjepa_jax.models.resnet import ResNetEncoder
from hamjepa_jax.state import TrainState
from hamjepa_jax.step import make_loss, make_train_step

CLIP_OVER = {"cifar100": "all", "imagenet100": "encoder", "sigreg": "none"}
HAMJEPA_TERMS = ("loss", "prediction", "budget", "variance", "logdet", "mean")
TOTAL_STEPS = 12
STEPS_PER_EPOCH = 4
# The first step, the last of the warm-up, one of the steepest descent, and the last.
FLOAT32_STEPS = (0, 3, 7, 11)
WEIGHT_DECAY = 5e-4


def standard_normal(*seed, shape):
    return np.random.default_rng(seed).standard_normal(shape)


def encoder_of(recipe, dtype):
    return ResNetEncoder(
        widths=(64, 128, 256, 512),
        depths=(2, 2, 2, 2),
        stem="cifar",
        mode="tokens",
        token_layer=3,
        token_hw=None,
        token_d_f=32,
        split_qp=recipe != "sigreg",
        out_dim=2048,
        dtype=jnp.dtype(dtype),
        spatial_first=dtype == "float64",
    )


def lejepa_loss(seed, precision):
    """LeJEPA with the directions of every step."""
    directions = np.stack([standard_normal(seed, 800 + step, shape=(2048, 64)) for step in range(TOTAL_STEPS)])
    directions = precision.arrays(directions / np.linalg.norm(directions, axis=1, keepdims=True))

    def loss(params, z, *, key, step, taps):
        return objectives.lejepa(z, directions[step], num_global_views=2, sigreg_weight=0.02, num_points=9, taps=taps)

    return loss


def hamjepa_loss(seed, precision, *, ramp_epochs, **settings):
    """HamJEPA with fixed projections, and the learned part of the energy ramped over so many epochs."""
    energy = energies.separable_mlp(hidden_dim=256, depth=2, base_coeff=0.1)
    flow = predictors.hamiltonian_flow(energy, step_size=0.05, num_steps=2)
    projection_q, projection_p = (
        precision.arrays(np.linalg.qr(standard_normal(seed, stream, shape=(1024, 23)))[0]) for stream in (501, 502)
    )

    def loss(params, z, *, key, step, taps):
        residual_scale = 0.02 * jnp.minimum(1.0, (step // STEPS_PER_EPOCH + 1) / ramp_epochs)
        return objectives.hamjepa(
            z,
            params["predictor"],
            predictor=flow,
            projection_q=projection_q,
            projection_p=projection_p,
            residual_scale=residual_scale,
            taps=taps,
            **settings,
        )

    return loss


def loss_of_images(encoder, loss, rectifiers):
    """The loss of a batch of images, half of them views of the others; the data set is what the rectifiers are told."""

    def two_views(key, switches, images):
        rectifiers.begin(switches)
        return (images.reshape(2, -1, *images.shape[1:]),)

    def loss_and_switches(*arguments, **keywords):
        value, metrics = loss(*arguments, **keywords)
        return value, metrics | {"switches": rectifiers.switches}

    objective = objectives.Objective(init=lambda key: {}, loss=loss_and_switches, terms=(), coordinates=None)
    return make_loss(encoder=encoder, views=two_views, objective=objective)


def optimizer_of(recipe):
    """The optimizer, and its schedules in the order of the golden learning rates."""
    peaks = {"encoder": 5e-4, "predictor": 5e-5 if recipe == "imagenet100" else 5e-4}
    schedules = {
        group: optim.warmup_cosine(
            peak=peak, end_value=5e-7, warmup_steps=STEPS_PER_EPOCH, total_steps=TOTAL_STEPS, warmup_factor=0.01
        )
        for group, peak in peaks.items()
    }
    optimizer = optim.adamw(
        schedules, b1=0.9, b2=0.999, weight_decay=WEIGHT_DECAY, clip_norm=1.0, clip_over=CLIP_OVER[recipe]
    )
    return optimizer, list(schedules.values())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CLIP_OVER)
def test_training(golden, seeded_state_dict, precisions, rectifiers, published_hamjepa, recipe):
    numbers, seed = golden("training"), int(golden("training")["seed"])
    variables = encoder_from_state_dict(seeded_state_dict(seed, golden("encoder")["state_dict_shapes"]))
    energy_weights = {} if recipe == "sigreg" else seeded_state_dict(seed + 1, numbers["predictor_shapes"])
    params = {"encoder": variables["params"], "predictor": predictor_from_state_dict(energy_weights)}
    optimizer, schedules = optimizer_of(recipe)
    state = TrainState(np.zeros((), int), params, variables["batch_stats"], optimizer.init(params), 0, 0)

    train_steps = {}
    for precision in precisions:
        with precision.context():
            if recipe == "sigreg":
                loss = lejepa_loss(seed, precision)
            else:
                ramp_epochs = 2 if recipe == "cifar100" else 1
                loss = hamjepa_loss(seed, precision, ramp_epochs=ramp_epochs, **published_hamjepa[recipe])
            loss = loss_of_images(encoder_of(recipe, precision.dtype), loss, rectifiers)
            train_steps[precision] = jax.jit(make_train_step(loss=loss, optimizer=optimizer))

    terms = ("loss", "prediction", "sigreg") if recipe == "sigreg" else HAMJEPA_TERMS
    for step in range(TOTAL_STEPS):
        images = standard_normal(seed, 700 + step, shape=(24, 3, 32, 32)).transpose(0, 2, 3, 1)
        following, switches = {}, None
        for precision, train_step in train_steps.items():
            if precision.dtype == "float32" and step not in FLOAT32_STEPS:
                continue
            with precision.context():
                following[precision.dtype], metrics = train_step(
                    precision.arrays(state), jax.random.key(0), step, switches, precision.arrays(images)
                )
                # From (H, W, N, C) to (N, H, W, C).
                switches = [switch.transpose(2, 0, 1, 3) for switch in metrics["switches"]]
                rates = [schedule(precision.arrays(step)) for schedule in schedules]
            losses = np.stack([metrics[term] for term in terms])
            precision.assert_close(losses, numbers[f"{recipe}_losses"][step], f"losses of step {step}")
            expected_rates = numbers[f"{recipe}_lrs"][step]
            precision.assert_close(rates[: len(expected_rates)], expected_rates, f"learning rates of step {step}")
            # 24 rows span 23 dimensions in the covariance floor: its condition number is 20,000.
            precision.assert_close(
                metrics["gradient_norm"],
                numbers[f"{recipe}_grad_norms"][step],
                f"gradient norm of step {step}",
                float32=2e-4,
            )
        state = jax.tree.map(np.asarray, following["float64"])

    images = standard_normal(seed, 999, shape=(4, 3, 32, 32)).transpose(0, 2, 3, 1)
    rectifiers.begin()
    for precision in precisions:
        with precision.context():
            final, images_in_precision = precision.arrays((state, images))
            embed = jax.jit(partial(encoder_of(recipe, precision.dtype).apply, train=False))
            z = embed({"params": final.params["encoder"], "batch_stats": final.batch_stats}, images_in_precision)
            layers = final.params["predictor"]["layers"]
            norms = [jnp.linalg.norm(layer[name]) for layer in layers for name in ("kernel", "bias")]
        precision.assert_close(z, numbers[f"{recipe}_final_eval"], "final embedding")
        if recipe != "sigreg":
            expected = numbers[f"{recipe}_predictor_norms"].copy()
            # The energy's additive constant has no gradient. PyTorch then leaves it out of the update, optax decays it.
            expected[-1] *= np.prod(1 - WEIGHT_DECAY * numbers[f"{recipe}_lrs"][:, 1])
            precision.assert_close(norms, expected, "norms of the energy's parameters")
