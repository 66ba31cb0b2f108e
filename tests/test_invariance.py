"""Loss, terms and gradients are those of the whole batch: on any number of devices, processes and microbatches."""

import os
import socket
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from hamjepa_jax import build, feed, sharding, train
from hamjepa_jax.data.pipeline import index_batches
from hamjepa_jax.step import make_loss

STEP = 3
VARIANTS = ("hamjepa", "sigreg")
EVERYTHING = "every regularizer"
MESHES = [
    *(("hamjepa", *mesh) for mesh in [(2, 1), (8, 1), (1, 2), (4, 2)]),
    *(("sigreg", *mesh) for mesh in [(8, 1), (2, 2)]),
    (EVERYTHING, 4, 2),
]
EXAMPLE_IDS = np.arange(32, dtype=np.int32)


@pytest.fixture(autouse=True)
def small_arrays_are_sharded(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)


@pytest.fixture(scope="module")
def config_of(digits_config):
    """A function from a variant to its config, with every term of the loss at work and well conditioned."""

    def make(variant):
        if variant == EVERYTHING:
            config = digits_config("rotation")
            # Rank tests sort the batch, and are as exact as their ranks.
            others = ("hamsigreg_learnable", "vicreg", "barlow_twins", "bhep", "anderson_darling", "moments")
            config.objective.regularizers = {
                name: {**term, "on": on, "weight": 0.1}
                for other, on in zip(others, ("z", "q", "p", "q", "p", "qp"), strict=True)
                for name, term in digits_config(other).objective.regularizers.to_dict().items()
            }
            config.objective.prediction.pairing = "center"
            config.predictor.width = 3
            return config
        config = digits_config(variant)
        if variant == "hamjepa":
            for term in config.objective.regularizers.values():
                if term.name == "mean_square":
                    term.target = 2.0
                elif term.name == "variance_floor":
                    term.std_floor = 2.0
                elif term.name == "covariance_floor":
                    term.max_rank, term.logdet_floor = 8, 1.0
                    term.participation_floor, term.eigmax_ceiling = 0.95, 0.05
        return config

    return make


class PerExample(nn.Module):
    """An encoder that sees every example on its own: no batch normalisation."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.gelu(nn.Dense(32)(images.reshape(len(images), -1)))
        return nn.Dense(64)(x)


def experiment_of(config, encoder=None):
    experiment = build.experiment(config)
    if encoder is None:
        return experiment
    initial_state = partial(experiment.initial_state, encoder=encoder)
    return experiment._replace(encoder=encoder, initial_state=initial_state)


def outcome(loss, state, key, dataset, example_ids):
    """Loss, terms, running statistics and gradients of a batch, on the host."""
    arguments = (state.params, state.batch_stats, key, STEP, dataset, example_ids)
    (value, (terms, batch_stats)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(*arguments)
    found = {"loss": value, "terms": terms, "batch_stats": batch_stats, "gradient": gradient}
    return jax.tree.map(np.asarray, found)


def without_a_mesh(config, *, encoder=None, example_ids=EXAMPLE_IDS):
    experiment = experiment_of(config, encoder)
    loss = make_loss(
        encoder=experiment.encoder,
        views=experiment.views,
        objective=experiment.objective,
        microbatches=config.train.microbatches,
    )
    key = jax.random.key(config.train.seed)
    dataset = jax.tree.map(jax.numpy.asarray, feed.whole(experiment.train_source))
    return outcome(loss, experiment.initial_state(key), key, dataset, example_ids)


def on_a_mesh(config, *, data, fsdp, encoder=None, example_ids=EXAMPLE_IDS):
    config.mesh.data, config.mesh.fsdp = data, fsdp
    experiment = experiment_of(config, encoder)
    setup = train.set_up(config, experiment, devices=jax.devices()[: data * fsdp])
    state = setup.initialize(setup.key)
    if fsdp > 1:
        largest = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
        assert not largest.sharding.is_fully_replicated
    dataset = sharding.place(feed.whole(experiment.train_source), sharding.replicated(setup.mesh))
    example_ids = sharding.place(example_ids, sharding.batch_sharding(setup.mesh))
    return outcome(setup.loss, state, setup.key, dataset, example_ids)


def assert_same(found, expected, *, without=()):
    """Equal to float32 rounding, of each array's largest entry and a tenth of that of the largest array of its kind."""
    for part in ("loss", "terms", "batch_stats", "gradient"):
        named = jax.tree_util.tree_leaves_with_path(expected[part])
        floor = 0.1 * max((np.max(np.abs(leaf)) for _, leaf in named), default=0.0)
        for (path, expected_leaf), found_leaf in zip(named, jax.tree.leaves(found[part]), strict=True):
            name = part + jax.tree_util.keystr(path)
            if name.endswith(without):
                continue
            tolerance = 1e-5 * max(np.max(np.abs(expected_leaf)), floor)
            np.testing.assert_allclose(found_leaf, expected_leaf, rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def expected(config_of):
    """A function from a variant and an encoder to their outcome without a mesh, computed once."""
    return cache(lambda variant, encoder=None: without_a_mesh(config_of(variant), encoder=encoder))


@pytest.mark.parametrize("variant", [*VARIANTS, EVERYTHING])
def test_every_term_is_at_work(config_of, expected, variant):
    for term in ("prediction", *config_of(variant).objective.regularizers):
        assert expected(variant)["terms"][term] > 1e-4, term


@pytest.mark.parametrize(("variant", "data", "fsdp"), MESHES)
def test_any_number_of_devices(config_of, expected, variant, data, fsdp):
    assert_same(on_a_mesh(config_of(variant), data=data, fsdp=fsdp), expected(variant))


@pytest.mark.parametrize(("devices", "microbatches"), [(1, 4), (4, 2)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_number_of_microbatches_without_batch_normalisation(config_of, expected, variant, devices, microbatches):
    config, encoder = config_of(variant), PerExample()
    config.train.microbatches = microbatches
    assert_same(on_a_mesh(config, data=devices, fsdp=1, encoder=encoder), expected(variant, encoder))


@pytest.mark.parametrize("variant", VARIANTS)
def test_microbatches_with_batch_normalisation_when_all_of_them_are_alike(config_of, variant):
    example_ids = np.repeat(np.arange(16, dtype=np.int32), 2)
    expected = without_a_mesh(config_of(variant), example_ids=example_ids)
    config = config_of(variant)
    config.train.microbatches = 2
    found = without_a_mesh(config, example_ids=example_ids)
    # The running variance is unbiased, n/(n − 1) times the biased one, for the n of a microbatch.
    assert_same(found, expected, without="['var']")
    images = 2 * 32
    pixels = 8 * 8
    biased = (expected["batch_stats"]["stem_bn"]["var"] - 0.9) / 0.1 * (1 - 1 / (images * pixels))
    unbiased = biased / (1 - 2 / (images * pixels))
    np.testing.assert_allclose(found["batch_stats"]["stem_bn"]["var"], 0.9 + 0.1 * unbiased, rtol=1e-6)


@pytest.mark.slow
def test_two_processes(config_of, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    for variant in VARIANTS:
        config = config_of(variant)
        config.mesh.fsdp = 2
        # Each process reads its own share of the batch.
        config.data.resident_bytes = 0
        (tmp_path / f"{variant}.json").write_text(config.to_json())
    worker = Path(__file__).with_name("one_of_two_processes.py")
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, worker, address, str(process_id), tmp_path],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process_id in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    example_ids = np.asarray(index_batches(1347, batch_size=32, seed=42)[STEP], np.int32)
    for variant in VARIANTS:
        expected = without_a_mesh(config_of(variant), example_ids=example_ids)
        for process_id in range(2):
            with np.load(tmp_path / f"{variant}-{process_id}.npz") as archive:
                leaves = list(archive.values())
            found = jax.tree.unflatten(jax.tree.structure(expected), leaves)
            assert_same(found, expected)
