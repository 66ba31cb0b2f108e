import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from saved_runs import save_run

import hamjepa_jax
from hamjepa_jax.data import augment
from hamjepa_jax.data.images import shorter_side_crop
from hamjepa_jax.errors import UserError


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    return [
        rng.integers(256, size=(height, width, 3), dtype=np.uint8) for height, width in ((16, 16), (30, 20), (9, 17))
    ]


@pytest.fixture(scope="module")
def z(photo_model, images):
    return photo_model.embed(images, batch_size=8)


def test_images_are_embedded_as_in_the_evaluation(photo_model, images, z):
    """Cut, normalised and encoded one by one, by hand."""
    config, encoder = photo_model.config, photo_model.encoder
    for image, found in zip(images, z, strict=True):
        view = shorter_side_crop(image, size=16, resize=16)
        normalised = augment.normalize(jnp.asarray(view, jnp.float32) / 255, config.data.mean, config.data.std)
        expected = encoder.apply(photo_model.variables, normalised[None], train=False)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (z.dtype, z.shape) == (np.float32, (3, photo_model.state_dim))


def test_embeddings_depend_on_neither_batches_nor_company(photo_model, images, z):
    for size in (1, 2, 5):
        np.testing.assert_allclose(photo_model.embed(images, batch_size=size), z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(photo_model.embed(images[::-1], batch_size=2), z[::-1], rtol=1e-4, atol=1e-5)
    assert photo_model.embed([], batch_size=2).shape == (0, photo_model.state_dim)


def test_pillow_images_grey_ones_and_transparent_ones(photo_model, images, z):
    same = [Image.fromarray(image) for image in images]
    np.testing.assert_array_equal(photo_model.embed(same, batch_size=8), z)
    opaque = [np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=2) for image in images]
    np.testing.assert_array_equal(photo_model.embed(opaque, batch_size=8), z)
    grey = images[0][..., 0]
    three = photo_model.embed([grey, grey[..., None], np.repeat(grey[..., None], 3, axis=2)], batch_size=8)
    np.testing.assert_array_equal(three, three[:1].repeat(3, axis=0))


def test_an_encoder_of_grey_images_takes_the_luma_of_colours(digits_config, images, tmp_path):
    model = hamjepa_jax.load(save_run(digits_config("sigreg"), tmp_path / "digits"))
    luma = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
    np.testing.assert_array_equal(model.embed(images, batch_size=4), model.embed(luma, batch_size=4))
    assert list(model.coordinates(np.zeros((2, model.state_dim)))) == ["whole"]
    with pytest.raises(
        ValueError, match="energy: only the flow of a Hamiltonian has one, and this run's predictor is identity"
    ):
        model.energy(np.zeros((1, model.state_dim)))


def test_the_flow_is_that_of_the_energy(photo_model, z):
    """dq/dt = p and dp/dt = −∇V(q), to the second order in the step; back again; and H is kept."""
    ahead = photo_model.predict(z)
    np.testing.assert_allclose(photo_model.predict(ahead, direction=-1), z, atol=1e-5)
    q, p = np.split(z, 2, axis=-1)
    settings = photo_model.config.predictor
    time = settings.step_size * settings.num_steps
    np.testing.assert_allclose(np.split(ahead, 2, axis=-1)[0], q + time * p, atol=0.02)
    assert not np.allclose(ahead, z, atol=1e-2)
    energies = photo_model.energy(photo_model.rollout(z, steps=20))
    assert energies.shape == (21, 3)
    np.testing.assert_allclose(energies, np.broadcast_to(energies[0], energies.shape), rtol=1e-3)
    rest = photo_model.energy(jnp.concatenate([q, jnp.zeros_like(p)], axis=-1))
    np.testing.assert_allclose(energies[0] - rest, 0.5 * np.sum(p**2, axis=-1), rtol=1e-4)


def test_a_rollout_predicts_again_and_again(photo_model, z):
    path = photo_model.rollout(z, steps=2)
    np.testing.assert_array_equal(path[0], z)
    np.testing.assert_allclose(path[2], photo_model.predict(photo_model.predict(z)), atol=1e-5)
    assert photo_model.rollout(z[0], steps=0).shape == (1, photo_model.state_dim)
    q, p = np.split(z, 2, axis=-1)
    parts = photo_model.coordinates(z)
    np.testing.assert_array_equal(parts["q"], q)
    np.testing.assert_array_equal(parts["p"], p)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([np.zeros((4, 4, 3))], r"images\[0\]: must be a Pillow image or a uint8 array .* got float64 \(4, 4, 3\)"),
        ([np.zeros((4, 4, 3), np.uint8), "cat.jpg"], r"images\[1\]: .* got str"),
        ([np.zeros((4, 4, 2), np.uint8)], r"images\[0\]: must have 1, 3 or 4 channels, got 2"),
        ([np.zeros((0, 4, 3), np.uint8)], r"images\[0\]: .* got uint8 \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), r"images: must be a sequence of images; give \[image\] for a single one"),
    ],
)
def test_what_is_no_image_is_named(photo_model, wrong, message):
    with pytest.raises(ValueError, match=message):
        photo_model.embed(wrong)


def test_states_of_another_size_are_refused(photo_model):
    with pytest.raises(ValueError, match=rf"z: must be embeddings \(\.\.\., {photo_model.state_dim}\), got \(2, 3\)"):
        photo_model.predict(np.zeros((2, 3)))


def test_a_directory_without_a_run_or_a_checkpoint_is_refused(photo_run, photo_config, tmp_path):
    with pytest.raises(UserError, match="no run here"):
        hamjepa_jax.load(tmp_path)
    with pytest.raises(UserError, match="no checkpoint 7 here; train first"):
        hamjepa_jax.load(photo_run, step=7)
    assert hamjepa_jax.load(photo_run, step=5).step == 5


def test_the_learned_part_of_the_energy_is_as_large_as_in_the_last_step(photo_config, tmp_path):
    config = photo_config()
    config.predictor.residual_ramp_epochs, config.predictor.residual_scale = 10, 0.5
    path = save_run(config, tmp_path / "run")
    (path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1.0}\n{"step": 4, "epoch": 2.5}\n')
    # Five steps of two an epoch: the last was in the third.
    assert hamjepa_jax.load(path).residual_scale == pytest.approx(0.5 * 3 / 10)


def test_all_devices_share_a_batch(photo_model):
    assert len(jax.local_devices()) == 8
    embedded = photo_model.encode(np.zeros((3, 16, 16, 3), np.uint8), 6)
    assert embedded.shape[0] == 8
    assert len(embedded.sharding.device_set) == 8
