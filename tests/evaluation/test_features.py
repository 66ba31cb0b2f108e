import jax
import numpy as np

from hamjepa_jax.data.loading import EvaluationBlock
from hamjepa_jax.evaluation.features import coordinates, extract_features


def test_features_do_not_depend_on_the_blocks():
    images = np.random.default_rng(0).integers(256, size=(11, 2, 2, 1), dtype=np.uint8)
    shapes = []

    def embed(block):
        shapes.append(block.shape)
        return jax.numpy.asarray(block, "float32").reshape(len(block), -1)

    def blocks(*ends):
        for part in np.split(np.arange(11), ends):
            yield EvaluationBlock(images[part], images[part, :1], part.astype(np.int32))

    whole = images.reshape(11, -1).astype(np.float32)
    # The last block is short, and one in the middle is too where an image could not be read.
    for block_size, ends in ((4, (4, 8)), (11, ()), (5, (5, 9))):
        features = extract_features({"a": embed, "b": lambda x: 2 * embed(x)}, blocks(*ends), block_size=block_size)
        np.testing.assert_array_equal(features.embeddings["a"], whole)
        np.testing.assert_array_equal(features.embeddings["b"], 2 * whole)
        np.testing.assert_array_equal(features.pixels, images[:, :1].reshape(11, -1) / np.float32(255))
        np.testing.assert_array_equal(features.labels, np.arange(11))
    # One shape, and so one compilation, for all the blocks of a pass.
    assert shapes == [(4, 2, 2, 1)] * 6 + [(11, 2, 2, 1)] * 2 + [(5, 2, 2, 1)] * 6


def test_coordinates_split_the_state_with_the_headline_first():
    z = np.arange(8.0).reshape(2, 4)
    split = coordinates(z, split_qp=True)
    assert list(split) == ["q", "p", "qp"]
    np.testing.assert_array_equal(split["q"], z[:, :2])
    np.testing.assert_array_equal(split["p"], z[:, 2:])
    assert list(coordinates(z, split_qp=False)) == ["whole"]
