import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from hamjepa_jax import sharding


def test_minus_one_takes_the_rest_of_the_devices():
    assert dict(sharding.make_mesh(data=-1, fsdp=1).shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh(data=-1, fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert dict(sharding.make_mesh(data=2, fsdp=-1).shape) == {"data": 2, "fsdp": 4}


@pytest.mark.parametrize(("data", "fsdp"), [(3, 1), (-1, 3), (-1, -1), (8, 2), (0, 8), (-1, 0), (-1, -2), (16, -1)])
def test_axes_that_do_not_fit_are_named(data, fsdp):
    with pytest.raises(ValueError, match=f"data={data} and fsdp={fsdp} do not multiply to the 8 devices"):
        sharding.make_mesh(data=data, fsdp=fsdp)


def test_large_arrays_are_split_along_their_largest_divisible_axis():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    arrays = {
        "kernel": jax.ShapeDtypeStruct((3, 3, 256, 512), jnp.float32),
        "odd": jax.ShapeDtypeStruct((1021, 128), jnp.float32),
        "prime": jax.ShapeDtypeStruct((257, 257), jnp.float32),
        "bias": jax.ShapeDtypeStruct((512,), jnp.float32),
    }
    specs = {name: placed.spec for name, placed in sharding.state_sharding(mesh, arrays).items()}
    assert specs == {
        "kernel": PartitionSpec(None, None, None, "fsdp"),
        "odd": PartitionSpec(None, "fsdp"),
        "prime": PartitionSpec(None, None),
        "bias": PartitionSpec(None),
    }


def test_nothing_is_split_when_fsdp_is_one():
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    placed = sharding.state_sharding(mesh, jax.ShapeDtypeStruct((512, 512), jnp.float32))
    assert placed.is_fully_replicated


def test_a_batch_is_split_over_all_devices():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    batch = sharding.place(np.arange(16), sharding.batch_sharding(mesh))
    assert [shard.data.tolist() for shard in batch.addressable_shards] == [[2 * i, 2 * i + 1] for i in range(8)]
    copies = sharding.place(np.arange(16), sharding.replicated(mesh))
    assert [shard.data.tolist() for shard in copies.addressable_shards] == [list(range(16))] * 8


def test_the_mesh_is_described_in_a_line():
    assert sharding.description(sharding.make_mesh(data=2, fsdp=4)) == (
        "8 devices (cpu) of 1 process, mesh data 2 × fsdp 4"
    )
    one = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    assert sharding.description(one) == "1 device (cpu) of 1 process, mesh data 1 × fsdp 1"


def test_arrays_in_parts_are_gathered_on_one_device(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 8)
    mesh = sharding.make_mesh(data=2, fsdp=4)
    arrays = {"kernel": np.arange(64.0, dtype=np.float32).reshape(8, 8), "bias": np.arange(4.0, dtype=np.float32)}
    placed = jax.tree.map(jax.device_put, arrays, sharding.state_sharding(mesh, arrays))
    assert not placed["kernel"].is_fully_replicated
    whole = sharding.whole_on_one_device(placed, mesh)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(whole))
    jax.tree.map(np.testing.assert_array_equal, whole, arrays)
