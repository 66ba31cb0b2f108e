import jax
import numpy as np

from hamjepa_jax.data.loading import EvaluationBlock
from hamjepa_jax.evaluation.features import extract_features, in_order


def test_features_do_not_depend_on_the_blocks():
    images = np.random.default_rng(0).integers(256, size=(11, 2, 2, 1), dtype=np.uint8)
    shapes = []

    def embed(block):
        shapes.append(block.shape)
        return {"whole": jax.numpy.asarray(block, "float32").reshape(len(block), -1)}

    def blocks(*ends):
        for part in np.split(np.arange(11), ends):
            yield EvaluationBlock(images[part], images[part, :1], part.astype(np.int32))

    whole = images.reshape(11, -1).astype(np.float32)
    # The last block is short, and one in the middle is too where an image could not be read.
    for block_size, ends in ((4, (4, 8)), (11, ()), (5, (5, 9))):
        features = extract_features(
            {"a": embed, "b": lambda x: {"twice": 2 * embed(x)["whole"]}}, blocks(*ends), block_size=block_size
        )
        np.testing.assert_array_equal(features.coordinates["a"]["whole"], whole)
        np.testing.assert_array_equal(features.coordinates["b"]["twice"], 2 * whole)
        np.testing.assert_array_equal(features.pixels, images[:, :1].reshape(11, -1) / np.float32(255))
        np.testing.assert_array_equal(features.labels, np.arange(11))
    # One shape, and so one compilation, for all the blocks of a pass.
    assert shapes == [(4, 2, 2, 1)] * 6 + [(11, 2, 2, 1)] * 2 + [(5, 2, 2, 1)] * 6


def test_the_headline_comes_first():
    assert in_order({"sqrt_h", "qp", "p", "q"}) == ["q", "p", "qp", "sqrt_h"]
    assert in_order({"sqrt_h", "whole"}) == ["whole", "sqrt_h"]
