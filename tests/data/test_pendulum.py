import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax import build, build_views
from hamjepa_jax.data import pendulum, views
from hamjepa_jax.data.loading import CanvasLoader, EvaluationLoader
from hamjepa_jax.data.sources import SourceError, open_source
from hamjepa_jax.dynamics import energies
from hamjepa_jax.dynamics.integrators import integrate
from hamjepa_jax.errors import UserError

COUNT = 64
SIZE = pendulum.IMAGE_SIZE


pytestmark = pytest.mark.usefixtures("few_films")


def center_of_bob(frame, length):
    """Where a frame is brightest beyond most of the rod, as (right, down) from the middle, in image sizes."""
    places = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    right, down = np.meshgrid(places, places)
    weights = frame * (np.hypot(right, down) > 0.9 * length)
    return np.array([np.sum(weights * right), np.sum(weights * down)]) / np.sum(weights)


def test_a_small_oscillation_has_the_period_two_pi_and_a_large_one_a_longer_one():
    states = pendulum.swing(np.array([[1e-3, 0.0], [2.0, 0.0]]), np.array([0.5 * np.pi, 2.0 * np.pi]))
    np.testing.assert_allclose(states[0, 0], [0.0, -1e-3], atol=1e-8)
    np.testing.assert_allclose(states[1, 0], [1e-3, 0.0], atol=1e-8)
    assert states[1, 1, 0] < 1.0


@pytest.mark.parametrize("num_pendula", [1, 2])
def test_motion_is_that_of_the_hamiltonian(num_pendula, float64):
    start = np.random.default_rng(0).uniform(-1, 1, (3, 2 * num_pendula))

    def value(params, q, p, residual_scale=1.0):
        spring = 0.5 * pendulum.COUPLING * jnp.square(q[..., 0] - q[..., -1])
        return energies.pendulum().value({}, q, p) + spring

    coupled = energies.Energy(None, value, lambda params, q, residual_scale=1.0: value(params, q, 0 * q))
    q, p = np.split(start, 2, axis=1)
    found = integrate(coupled, {}, q, p, step_size=0.01, num_steps=200, scheme="yoshida4")
    (expected,) = pendulum.swing(start, np.array([2.0]))
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-6)
    np.testing.assert_allclose(pendulum.energies(start), value({}, q, p), rtol=1e-12)
    np.testing.assert_allclose(pendulum.energies(expected), pendulum.energies(start), rtol=1e-6)


def test_time_goes_backwards_and_at_a_speed_of_its_own():
    start = np.array([[0.4, 0.1], [-1.0, 0.3]])
    (there,) = pendulum.swing(start, np.array([1.0]), speed=np.array([[2.0], [0.5]]))
    np.testing.assert_allclose(there[0], pendulum.swing(start, np.array([2.0]))[0, 0], atol=1e-7)
    np.testing.assert_allclose(there[1], pendulum.swing(start, np.array([0.5]))[0, 1], atol=1e-7)
    (back,) = pendulum.swing(there[:1], np.array([-2.0]))
    np.testing.assert_allclose(back, start[:1], atol=1e-7)


@pytest.mark.parametrize("angle", [0.0, 0.5, -1.3, 2.1])
def test_a_pendulum_hangs_where_its_angle_says(angle):
    frame = pendulum.render(np.array([angle]))
    assert frame.shape == (SIZE, SIZE)
    assert frame.dtype == np.uint8
    length = pendulum.LENGTHS[1]
    expected = length * np.array([np.sin(angle), np.cos(angle)])
    np.testing.assert_allclose(center_of_bob(frame, length), expected, atol=0.5 / SIZE)


def test_two_pendula_hang_side_by_side_and_look_different():
    frame = pendulum.render(np.array([0.0, 0.0]))
    left, right = frame[:, : SIZE // 2].astype(int), frame[:, SIZE // 2 :].astype(int)
    assert left.sum() > 1.3 * right.sum() > 0
    np.testing.assert_array_equal(frame, pendulum.render(np.array([[0.0, 0.0], [1.0, 1.0]]))[0])
    assert np.any(pendulum.render(np.array([1.0, 0.0])) != pendulum.render(np.array([0.0, 1.0])))


@pytest.mark.parametrize("name", pendulum.PENDULA)
def test_a_film_shows_the_motion_of_its_states(name):
    source = pendulum.films(name, "train")
    dim = pendulum.PENDULA[name]
    assert source.images.shape == (COUNT, SIZE, 2 * SIZE, 3)
    assert source.states.shape == (COUNT, 2, 2 * dim)
    assert 0.8 * pendulum.AMPLITUDES[dim] < np.abs(source.states[..., :dim]).max() < pendulum.AMPLITUDES[dim] + 0.01
    half = pendulum.FRAME_GAP / 2
    for view in range(2):
        states = source.states[:, view].astype(float)
        for channel, shift in ((0, -half), (1, half), (2, half)):
            expected = pendulum.render(pendulum.swing(states, np.array([shift]))[0, :, :dim]).astype(int)
            shown = source.images[:, :, view * SIZE : (view + 1) * SIZE, channel].astype(int)
            assert np.max(np.abs(shown - expected)) <= 1
    later = pendulum.swing(source.states[:, 0].astype(float), np.array([pendulum.VIEW_GAP]))[0]
    np.testing.assert_allclose(later, source.states[:, 1], atol=1e-5)


def test_films_are_always_the_same_and_test_films_are_others():
    first, second, test = (pendulum.films("pendulum", split) for split in ("train", "train", "test"))
    np.testing.assert_array_equal(first.images, second.images)
    assert not np.any(np.all(np.isclose(test.states[:, None], first.states), axis=(2, 3)))


def test_classes_are_sectors_of_the_phase_plane():
    turns = np.array([0.01, 0.26, 0.49, 0.51, 0.74, 0.99, 1.0])
    states = np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=-1)[:, None]
    source = pendulum.FilmSource(np.zeros((len(turns), 2, 4, 3), np.uint8), states)
    assert source.class_names[2] == "90–135°"
    assert list(source.labels[:-1]) == [0, 2, 3, 4, 5, 7]
    # On the boundary rounding decides between the first and the last.
    assert source.labels[-1] in (0, 7)


def test_an_evaluation_sees_the_first_view_and_training_the_film():
    source = pendulum.films("pendulum", "train")
    block, _ = EvaluationLoader(source, size=SIZE, resize=SIZE)(0, np.array([3, 1]))
    np.testing.assert_array_equal(block.images, source.images[[3, 1], :, :SIZE])
    batch, _ = CanvasLoader(source, canvas_size=2 * SIZE)(0, np.array([3, 1]))
    np.testing.assert_array_equal(batch.images[:, :SIZE], source.images[[3, 1]])


def test_the_views_of_a_film_are_its_images_in_their_order(film_config):
    (group,) = build_views.view_groups(film_config().data)
    source = pendulum.films("pendulum", "train")
    sizes, ids = np.full((COUNT, 2), (SIZE, 2 * SIZE), np.int32), np.arange(COUNT, dtype=np.int32)
    (parameters,) = views.draw_views(jax.random.key(0), sizes, ids, (group,))
    found = views.render_views(source.images, parameters, group.render, one_by_one=False)
    for view in range(2):
        expected = source.images[:, :, view * SIZE : (view + 1) * SIZE] / 255
        np.testing.assert_allclose(found[view], expected, atol=1e-6)


def test_mistakes_are_told_in_one_line(film_config, tmp_path):
    with pytest.raises(ValueError, match="films of pendulum, coupled_pendula for train, test, got 'spring', 'train'"):
        pendulum.films("spring", "train")
    with pytest.raises(SourceError, match="'val' is not a split of pendulum; its splits: train, test"):
        open_source("pendulum", "val", data_dir=None)
    with pytest.raises(SourceError, match="pendulum has no classes to choose from"):
        open_source("pendulum", "train", data_dir=None, class_list=tmp_path / "classes.txt")
    for key in ("num_global_views", "num_local_views", "view_size"):
        config = film_config()
        config.data[key] = 3
        with pytest.raises(UserError, match=f"config.data.{key}: must be [0-9]+, because films are made so, got 3"):
            build.experiment(config)
