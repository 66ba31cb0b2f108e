"""The gallery: what is rolled out is what the integrators give, and symplectic steps keep what they should."""

import io
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from hamjepa_jax.dynamics import systems
from hamjepa_jax.dynamics.integrators import integrate
from hamjepa_jax.dynamics.predictors import split_state
from hamjepa_jax.physics import learned_step, maps, numbers, rollouts
from hamjepa_jax.physics.gallery import LEARNED, NO_PARAMETERS, STEP_MLP, STEPS, SYMPLECTIC, SYSTEMS, energy_of, flow
from hamjepa_jax.physics.run import Settings, run

SELF_ADJOINT = ("leapfrog", "yoshida4", "implicit_midpoint")
NUM_STEPS, EVERY = 60, 20


@pytest.fixture(autouse=True)
def double_precision_allowed(float64):
    """The gallery is computed in double precision."""


@pytest.fixture
def pendulum_alone(monkeypatch):
    for name in tuple(SYSTEMS):
        if name != "pendulum":
            monkeypatch.delitem(SYSTEMS, name)


def untrained(name, seed=0):
    """A learned step that has learned nothing, but moves."""
    dim = len(SYSTEMS[name].centre)
    params = STEP_MLP.init(jax.random.key(seed), dim)
    return jax.tree.map(lambda x: x.astype(float) + 0.01, params)


@pytest.fixture(scope="module")
def rolled_out():
    """What is carried of two systems, and what is observed of it."""
    with jax.enable_x64(True):
        carried = {
            name: rollouts.carried_at_first(SYSTEMS[name], jax.random.key(0), num_starts=9, loop_size=64, cloud_size=30)
            for name in ("kepler", "pendulum")
        }
        learned = {name: untrained(name) for name in carried}
        seen = rollouts.roll_out(carried, learned, num_steps=NUM_STEPS, every=EVERY)
        return carried, jax.device_get(seen)


@pytest.mark.parametrize("name", ["kepler", "pendulum"])
def test_symplectic_steps_keep_the_area_of_the_loop_and_the_others_do_not(rolled_out, name):
    _, seen = rolled_out
    for step in STEPS:
        area = seen[name][step].area
        change = np.max(np.abs(area / area[0] - 1.0))
        assert (change < 1e-10) if step in SYMPLECTIC else (change > 1e-3), step
        assert area[0] == pytest.approx(np.pi * SYSTEMS[name].loop_radius ** 2, rel=1e-10)


@pytest.mark.parametrize("scheme", ["explicit_euler", "leapfrog", "implicit_midpoint"])
def test_what_is_observed_is_what_the_integrator_gives(rolled_out, scheme):
    carried, seen = rolled_out
    system, starts = SYSTEMS["kepler"], carried["kepler"].starts
    first = energy_of(system, starts)
    for number in range(NUM_STEPS // EVERY + 1):
        q, p = integrate(
            system.energy,
            NO_PARAMETERS,
            *split_state(starts),
            step_size=system.step_size,
            num_steps=number * EVERY,
            scheme=scheme,
        )
        found = seen["kepler"][scheme]
        expected = np.abs(system.energy.value(NO_PARAMETERS, q, p) - first) / np.abs(first)
        np.testing.assert_allclose(found.energy_error[number], expected, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(found.orbits[number], q[: rollouts.NUM_ORBITS], rtol=1e-10)


def test_the_energy_error_of_leapfrog_is_of_second_order_and_bounded():
    system = SYSTEMS["henon_heiles"]
    starts = system.starts(jax.random.key(0), 16)
    errors = [
        maps.largest_energy_error(half, flow(half, scheme="leapfrog"), starts, num_steps=num_steps)
        for half, num_steps in ((system, 200), (system._replace(step_size=system.step_size / 2), 400), (system, 2000))
    ]
    assert np.median(errors[0] / errors[1]) == pytest.approx(4.0, rel=0.1)
    assert np.max(errors[2]) < 2.0 * np.max(errors[0])


@pytest.mark.parametrize("name", SYSTEMS)
def test_starts_are_bounded_where_the_motion_is(name):
    system = SYSTEMS[name]
    starts = system.starts(jax.random.key(1), 64)
    assert starts.shape == (64, len(system.centre))
    end = flow(system, scheme="yoshida4", num_steps=300)(starts)
    assert np.max(np.abs(end)) < 4.0
    x, y = system.portrait
    place = np.asarray(system.project(starts))
    assert np.all((x.low < place[:, 0]) & (place[:, 0] < x.high) & (y.low < place[:, 1]) & (place[:, 1] < y.high))


def test_planets_start_at_the_perihelion_of_ellipses():
    eccentricity = jnp.array([0.0, 0.3])
    z = SYSTEMS["kepler"].start_at(eccentricity, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(energy_of(SYSTEMS["kepler"], z), -0.5, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(z[:, :2], axis=1), 1.0 - eccentricity, rtol=1e-12)


def test_a_grid_has_its_starts_in_the_middle_of_its_cells():
    starts = maps.grid_of_starts(SYSTEMS["pendulum"], 4)
    np.testing.assert_allclose(starts[0, :, 0], [-1.5, -0.5, 0.5, 1.5])
    np.testing.assert_allclose(starts[:, 0, 1], [-0.75, -0.25, 0.25, 0.75])
    modes = systems.normal_modes(4)[1]
    q = maps.grid_of_starts(SYSTEMS["oscillators"], 2)[0, 1, :4]
    np.testing.assert_allclose(modes @ q, [0.5, -0.5, 0.0, 0.0], atol=1e-12)


def test_maps_of_starts_and_defects(pendulum_alone):
    learned = {"pendulum": untrained("pendulum")}
    mapped = jax.device_get(maps.map_starts(learned, size=4, num_steps=40, num_reversed=25))["pendulum"]
    starts = maps.grid_of_starts(SYSTEMS["pendulum"], 4)
    defects = maps.defects({"pendulum": starts.reshape(-1, 2)}, learned)["pendulum"]
    for step in STEPS:
        assert np.all((mapped[step].reversal < 1e-12) == (step in SELF_ADJOINT)), step
        assert np.all((defects[step] < 1e-13) == (step in SYMPLECTIC)), step
    for step in ("explicit_euler", "leapfrog"):
        one_step, states = jax.jit(flow(SYSTEMS["pendulum"], scheme=step)), [starts]
        for _ in range(40):
            states.append(one_step(states[-1]))
        energies_TxNxN = energy_of(SYSTEMS["pendulum"], jnp.stack(states))
        expected = np.max(np.abs(energies_TxNxN - energies_TxNxN[0]), axis=0) / energies_TxNxN[0]
        np.testing.assert_allclose(mapped[step].energy, expected, rtol=1e-8)


def test_a_state_that_is_lost_has_an_infinite_error():
    system = SYSTEMS["pendulum"]
    lost = maps.largest_energy_error(system, lambda z: z / 0.0, jnp.ones((2, 2)), num_steps=3)
    assert np.all(np.isinf(lost))


def test_a_learned_step_is_trained_on_exact_steps_that_roll_outs_visit():
    system = SYSTEMS["pendulum"]
    pairs = learned_step.visited_pairs(system, jax.random.key(0), 256)
    finer = flow(system, scheme="yoshida4", substeps=64)(pairs.before)
    np.testing.assert_allclose(pairs.after, finer, atol=1e-10)
    along_each = energy_of(system, pairs.before.reshape(32, 8, 2))
    assert np.max(along_each.std(axis=0)) < 1e-4 < np.min(along_each.std(axis=1))
    train = partial(learned_step.train, pairs, jax.random.key(1), learning_rate=1e-2)
    held_out = learned_step.visited_pairs(system, jax.random.key(2), 256)
    few, many = (learned_step.measured(jax.jit(partial(train, num_steps=n))(), held_out) for n in (5, 300))
    assert many.relative_error < 0.2 * few.relative_error
    assert many.relative_error < 0.1
    displacement = np.sqrt(np.mean(np.sum((held_out.after - held_out.before) ** 2, axis=1)))
    assert many.relative_error == pytest.approx(many.error / displacement)


def test_quartiles_are_values_even_where_some_are_infinite():
    found = numbers.quartiles(np.array([1.0, 2.0, 3.0, np.inf]))
    assert [found[name] for name in ("lower", "median", "upper")] == [1.0, 2.0, 3.0]
    assert numbers.infinite_where_lost(np.array([np.nan, 1.0])).tolist() == [np.inf, 1.0]
    assert numbers.shown(np.inf) == "∞"


@pytest.mark.slow
def test_the_gallery_is_written_whole(tmp_path):
    small = Settings(
        num_starts=4,
        loop_size=32,
        cloud_size=16,
        num_steps=20,
        every=10,
        grid_size=3,
        num_mapped=5,
        num_reversed=5,
        num_pairs=64,
        num_updates=5,
        num_frames=3,
        frame_every=2,
    )
    shown = io.StringIO()
    run(tmp_path, Console(file=shown, width=120), small)
    pictures = ("orbits", "energy", "energy_maps", "area", "defect", "reversal", "covariance")
    files = {f"physics_{name}.png" for name in pictures} | {"physics_blob.gif", "physics.json"}
    assert {path.name for path in tmp_path.iterdir()} == files
    for name in pictures:
        assert min(Image.open(tmp_path / f"physics_{name}.png").size) > 1000
    assert Image.open(tmp_path / "physics_blob.gif").n_frames == 3
    written = json.loads((tmp_path / "physics.json").read_text())
    assert written["settings"]["num_starts"] == 4
    assert set(written["systems"]) == set(SYSTEMS)
    for name in SYSTEMS:
        assert set(written["systems"][name]) == set(STEPS)
        assert len(written["systems"][name]["leapfrog"]["energy_error"]["median"]) == 3
        assert written["systems"][name]["yoshida4"]["defect"]["largest"] < 1e-13
        assert written["systems"][name][LEARNED]["defect"]["median"] > 1e-6
        assert SYSTEMS[name].title in shown.getvalue()
    assert str(tmp_path / "physics.json") in shown.getvalue().replace("\n", "")
