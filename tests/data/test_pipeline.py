import numpy as np
import pytest

from hamjepa_jax.data.pipeline import index_batches


def test_an_epoch_visits_no_example_twice_and_drops_the_incomplete_batch():
    batches = index_batches(10, batch_size=3, seed=0)
    epoch = np.concatenate([batches[step] for step in range(3)])
    assert len(set(epoch.tolist())) == 9
    assert set(epoch.tolist()) <= set(range(10))
    assert [len(batches[step]) for step in range(7)] == [3] * 7


def test_every_epoch_and_every_seed_has_its_own_order():
    batches = index_batches(100, batch_size=50, seed=0)
    assert not np.array_equal(batches[0], batches[2])
    assert not np.array_equal(batches[0], index_batches(100, batch_size=50, seed=1)[0])


def test_a_batch_depends_on_the_step_alone():
    first, second = (index_batches(20, batch_size=4, seed=3) for _ in range(2))
    walked = [first[step] for step in range(12)]
    np.testing.assert_array_equal(second[11], walked[11])


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(ValueError, match="between 1 and the 5 examples, got 6"):
        index_batches(5, batch_size=6, seed=0)
