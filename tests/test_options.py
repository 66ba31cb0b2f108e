"""Every option of an objective changes what it should and nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from hamjepa_jax import build

DIM, BATCH = 64, 32
# Variant, key, value: exactly these metrics change, besides the loss.
OPTIONS = [
    ("hamjepa", "prediction.weight", 2.0, set()),
    ("hamjepa", "prediction.match", "qp", {"prediction"}),
    ("hamjepa", "prediction.p_weight", 0.5, {"prediction"}),
    ("hamjepa", "prediction.bidirectional", "swap", {"prediction"}),
    ("hamjepa", "prediction.pairing", "center", {"prediction"}),
    ("hamjepa", "prediction.energy_weight", 1e6, {"prediction"}),
    ("hamjepa", "regularizers.budget_q.target", 2.0, {"budget_q"}),
    ("hamjepa", "regularizers.variance_p.std_floor", 2.0, {"variance_p"}),
    ("hamjepa", "regularizers.logdet_q.logdet_floor", 1.0, {"logdet_q"}),
    ("hamjepa", "regularizers.logdet_q.participation_floor", 0.9, {"logdet_q"}),
    ("hamjepa", "regularizers.logdet_q.eigmax_ceiling", 0.01, {"logdet_q"}),
    ("hamjepa", "regularizers.logdet_q.max_rank", 8, {"logdet_q", "q_logdet", "q_participation", "q_eigmax"}),
    ("hamjepa", "regularizers.mean.weight", 1.0, set()),
    ("sigreg", "form", "convex", set()),
    ("sigreg", "regularizers.sigreg.weight", 1.0, set()),
    ("sigreg", "regularizers.sigreg.num_directions", 7, {"sigreg"}),
    ("sigreg", "regularizers.sigreg.pooled", True, {"sigreg"}),
    ("sigreg", "regularizers.sigreg.test.num_points", 5, {"sigreg"}),
    ("sigreg", "regularizers.sigreg.test.t_max", 2.0, {"sigreg"}),
    ("sigreg", "regularizers.sigreg.test.weight", "uniform", {"sigreg"}),
    ("hamsigreg_chain", "regularizers.hamsigreg.geometry.kappa", 0.1, {"hamsigreg"}),
    ("hamsigreg_chain", "regularizers.hamsigreg.geometry.eps", 1.0, {"hamsigreg"}),
    ("hamsigreg_chain", "regularizers.hamsigreg.geometry.beta", 0.5, {"hamsigreg"}),
    ("hamsigreg_chain", "regularizers.hamsigreg.geometry.normalize", "logdet", {"hamsigreg"}),
]


def views():
    # Off centre, of different scales, and some of it common to the views.
    own, common = jax.random.normal(jax.random.key(0), (2, 2, BATCH, DIM))
    return 0.3 + jnp.linspace(0.5, 1.5, DIM) * (0.5 * own + common[:1])


def loss_of(config):
    experiment = build.experiment(config)
    params = {"predictor": experiment.predictor.init(jax.random.key(1), DIM), "regularizers": {}}
    return partial(experiment.objective.loss, params, key=jax.random.key(7), step=0)


def evaluate(config):
    loss, metrics = jax.jit(loss_of(config))(views())
    return {"loss": float(loss)} | {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def config_of(digits_config):
    """A function from a variant to its config, with a floor of whose three parts every one has a say."""

    def make(variant):
        config = digits_config(variant)
        if variant == "hamjepa":
            floor = config.objective.regularizers.logdet_q
            floor.logdet_floor, floor.participation_floor, floor.eigmax_ceiling = 0.5, 0.8, 0.02
        return config

    return make


@pytest.fixture(scope="module")
def before(config_of):
    """The metrics of each variant as it is."""
    return {variant: evaluate(config_of(variant)) for variant, *_ in OPTIONS}


@pytest.mark.parametrize(("variant", "key", "value", "changing"), OPTIONS, ids=[f"{key}" for _, key, *_ in OPTIONS])
def test_an_option_changes_what_it_should_and_nothing_else(config_of, before, variant, key, value, changing):
    config = config_of(variant)
    config.objective.update_from_flattened_dict({key: value})
    after = evaluate(config)
    assert after.keys() == before[variant].keys()
    changed = {name for name in after if after[name] != pytest.approx(before[variant][name], rel=1e-6)}
    assert changed == changing | {"loss"}


def test_stopping_the_gradient_changes_no_value(config_of, before):
    config, gradients = config_of("hamjepa"), []
    for detach_target in (True, False):
        config.objective.prediction.detach_target = detach_target
        assert evaluate(config) == pytest.approx(before["hamjepa"], rel=1e-6)
        gradients.append(jax.jit(jax.grad(loss_of(config), has_aux=True))(views())[0])
    assert jnp.abs(gradients[0] - gradients[1]).max() > 1e-5
