import jax
import numpy as np
import pytest
from rich.console import Console

from hamjepa_jax import build, train
from hamjepa_jax.data.sources import ArraySource
from hamjepa_jax.evaluation import pairs
from hamjepa_jax.evaluation.spectra import alignment

QUIET = Console(quiet=True)


def held_out(config, experiment):
    state = experiment.initial_state(jax.random.key(0))
    return np.array(pairs.held_out_views(config, experiment, [state], QUIET)[0])


def test_held_out_views_are_two_views_seen_by_the_frozen_encoder(digits_config, monkeypatch):
    config = digits_config()
    experiment = build.experiment(config)
    states = held_out(config, experiment)
    assert states.shape == (2, 450, 64)
    assert states.dtype == np.float32
    # Every image once.
    assert len(np.unique(states[0], axis=0)) == 450
    # Two views of an image are closer than views of two images, and not the same.
    distances = np.linalg.norm(states[0][:, None] - states[1][None], axis=-1)
    assert distances.diagonal().min() > 0
    assert distances.diagonal().mean() < 0.8 * distances.mean()
    # No state depends on the others of its block, nor on where a block ends.
    monkeypatch.setattr(pairs, "BLOCK_SIZE", 100)
    np.testing.assert_allclose(held_out(config, experiment), states, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(pairs, "NUM_EXAMPLES", 30)
    np.testing.assert_allclose(held_out(config, experiment), states[:, :30], rtol=1e-4, atol=1e-5)


def test_asked_twice_one_program_answers(digits_config):
    config = digits_config()
    experiment, traced = build.experiment(config), []
    views = experiment.views
    counting = experiment._replace(views=lambda *arguments: traced.append(1) or views(*arguments))
    first, second = held_out(config, counting), held_out(config, counting)
    np.testing.assert_array_equal(first, second)
    assert len(traced) == 1


def test_held_out_views_are_the_same_read_from_files_and_from_memory(photo_config):
    config = photo_config()
    streamed = build.experiment(config)
    resident = train.with_data_in_memory(config, streamed, QUIET)
    assert isinstance(resident.test_source, ArraySource)
    assert not isinstance(streamed.test_source, ArraySource)
    found = held_out(config, streamed)
    assert found.shape[:2] == (2, 24)
    np.testing.assert_array_equal(held_out(config, resident), found)


def test_held_out_views_may_be_cut_out_by_the_host(photo_config):
    config = photo_config("hamjepa_multicrop")
    config.data.canvas_size = None
    found = held_out(config, build.experiment(config))
    assert found.shape[:2] == (2, 24)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("variant", ["hamjepa", "sigreg"])
def test_alignment_is_that_of_the_two_views_in_every_coordinate(digits_config, variant):
    config = digits_config(variant)
    experiment = build.experiment(config)
    states = [experiment.initial_state(jax.random.key(seed)) for seed in range(2)]
    found, of_another = pairs.alignments(config, experiment, states, QUIET)
    assert all(found[on] != of_another[on] for on in found)
    first, second = held_out(config, experiment)
    if variant == "sigreg":
        assert list(found) == ["pooled", "whole"]
        assert found["whole"] == pytest.approx(alignment(first, second), rel=1e-5)
    else:
        assert list(found) == ["p", "pooled", "q", "qp"]
        assert found["p"] == pytest.approx(alignment(first[:, 32:], second[:, 32:]), rel=1e-5)
    # Below that of views of different images.
    assert all(value < 0.8 * alignment(first, np.roll(second, 1, axis=0)) for value in found.values())
