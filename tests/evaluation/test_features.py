import jax
import numpy as np
import pytest

from hamjepa_jax import sharding
from hamjepa_jax.data.loading import EvaluationBlock
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation.features import extract_features, in_order, read_features
from hamjepa_jax.evaluation.progress import Rows

IMAGES = np.random.default_rng(0).integers(256, size=(11, 2, 2, 1), dtype=np.uint8)
WHOLE = IMAGES.reshape(11, -1).astype(np.float32)


def blocks(*parts):
    for part in parts:
        ids = np.array(part, np.int32)
        yield EvaluationBlock(IMAGES[ids], IMAGES[ids, :1], ids + 100, ids)


def mesh_of(num_devices):
    return sharding.make_mesh(data=num_devices, fsdp=1, devices=jax.devices()[:num_devices])


@pytest.mark.parametrize(("block_size", "ends", "num_devices"), [(4, (4, 8), 1), (11, (), 8), (5, (5, 9), 2)])
def test_features_do_not_depend_on_the_blocks_or_the_devices(tmp_path, block_size, ends, num_devices):
    shapes = []

    def embed(block):
        shapes.append((block.shape, len(block.sharding.device_set)))
        return {"whole": jax.numpy.asarray(block, "float32").reshape(len(block), -1)}

    # The last block is short, and one in the middle is too where an image could not be read.
    encoders = {"a": embed, "b": lambda x: {"twice": 2 * embed(x)["whole"]}}
    parts, kept = np.split(np.arange(11), ends), Rows(tmp_path)
    mesh = mesh_of(num_devices)
    extract_features(encoders, blocks(*parts), block_size=block_size, mesh=mesh, kept=kept)
    features = read_features([Rows(tmp_path)])
    np.testing.assert_array_equal(features.coordinates["a"]["whole"], WHOLE)
    np.testing.assert_array_equal(features.coordinates["b"]["twice"], 2 * WHOLE)
    np.testing.assert_array_equal(features.pixels, IMAGES[:, :1].reshape(11, -1) / np.float32(255))
    np.testing.assert_array_equal(features.labels, np.arange(100, 111))
    np.testing.assert_array_equal(features.example_ids, np.arange(11))
    # One shape, and so one compilation, for all the blocks of a pass: a full block, with as much on every device.
    size = -(-block_size // num_devices) * num_devices
    assert shapes == [((size, 2, 2, 1), num_devices)] * 2 * len(parts)


def test_the_halves_of_a_state_are_not_kept_twice(tmp_path):
    def embed(block):
        z = block.astype("float32").reshape(len(block), -1)
        return {"q": z[:, :2], "p": z[:, 2:], "qp": z, "pooled": z[:, :1]}

    extract_features({"a": embed}, blocks(range(11)), block_size=11, mesh=mesh_of(1), kept=Rows(tmp_path))
    kept = Rows(tmp_path).arrays()
    assert kept.keys() == {"a.qp", "a.pooled", "pixels", "labels", "example_ids"}
    coordinates = read_features([Rows(tmp_path)]).coordinates["a"]
    np.testing.assert_array_equal(coordinates["q"], WHOLE[:, :2])
    np.testing.assert_array_equal(coordinates["p"], WHOLE[:, 2:])
    np.testing.assert_array_equal(coordinates["pooled"], WHOLE[:, :1])


def test_shares_of_several_processes_are_put_together_in_order(tmp_path):
    for name, part in (("0", range(6)), ("1", range(6, 11))):
        kept = Rows(tmp_path / name)
        embed = {"a": lambda x: {"whole": x.astype("float32").reshape(len(x), -1)}}
        extract_features(embed, blocks(part), block_size=6, mesh=mesh_of(1), kept=kept)
    features = read_features([Rows(tmp_path / name) for name in ("0", "1")])
    np.testing.assert_array_equal(features.coordinates["a"]["whole"], WHOLE)
    np.testing.assert_array_equal(features.example_ids, np.arange(11))


def test_a_block_of_unreadable_images_leaves_nothing(tmp_path):
    def with_a_gap():
        yield from blocks(range(4))
        nothing = np.zeros(0, np.int32)
        yield EvaluationBlock(np.array([]), np.array([]), nothing, nothing)
        yield from blocks(range(8, 11))

    kept, shapes = Rows(tmp_path), []
    embed = {"a": lambda x: shapes.append(x.shape) or {"whole": x.astype("float32").reshape(len(x), -1)}}
    extract_features(embed, with_a_gap(), block_size=4, mesh=mesh_of(1), kept=kept)
    assert kept.num_blocks == 3
    assert shapes == [(4, 2, 2, 1)] * 2
    assert read_features([kept]).example_ids.tolist() == [0, 1, 2, 3, 8, 9, 10]


def test_features_that_are_not_finite_are_refused(tmp_path):
    def embed(block):
        return {"q": jax.numpy.where(block[:, 0, 0] == IMAGES[6, 0, 0], jax.numpy.nan, 1.0)}

    with pytest.raises(UserError, match=r"^image 6: its features \(trained.q\) are not finite"):
        extract_features(
            {"trained": embed}, blocks(range(4), range(4, 8)), block_size=4, mesh=mesh_of(1), kept=Rows(tmp_path)
        )


def test_the_headline_comes_first():
    assert in_order({"sqrt_h", "pooled", "qp", "p", "q"}) == ["q", "p", "qp", "pooled", "sqrt_h"]
    assert in_order({"sqrt_h", "whole"}) == ["whole", "sqrt_h"]
