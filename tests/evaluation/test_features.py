import jax
import numpy as np

from hamjepa_jax.evaluation.features import coordinates, extract_features


def test_features_do_not_depend_on_the_blocks():
    images = np.random.default_rng(0).integers(256, size=(11, 2, 2, 1), dtype=np.uint8)
    shapes = []

    def embed(block):
        shapes.append(block.shape)
        return jax.numpy.asarray(block, "float32").reshape(len(block), -1)

    whole = images.reshape(11, -1).astype(np.float32)
    for batch_size in (4, 11, 100):
        np.testing.assert_array_equal(extract_features(embed, images, batch_size=batch_size), whole)
    # One shape, and so one compilation, for all the blocks of a pass.
    assert shapes == [(4, 2, 2, 1)] * 3 + [(11, 2, 2, 1)] * 2


def test_coordinates_split_the_state_with_the_headline_first():
    z = np.arange(8.0).reshape(2, 4)
    split = coordinates(z, split_qp=True)
    assert list(split) == ["q", "p", "qp"]
    np.testing.assert_array_equal(split["q"], z[:, :2])
    np.testing.assert_array_equal(split["p"], z[:, 2:])
    assert list(coordinates(z, split_qp=False)) == ["whole"]
