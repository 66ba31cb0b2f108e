"""The device mesh and what lies where on it: batches over every axis, large parameters over `fsdp`."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 2**16


def make_mesh(*, data: int, fsdp: int) -> Mesh:
    """Arranges all devices of all processes in a mesh with the axes `data` and `fsdp`.

    Args:
        data: devices along the axis over which only the batch is split, or −1 for the rest.
        fsdp: devices along the axis over which parameters are split as well, or −1 for the rest.

    Returns:
        The mesh.

    Raises:
        ValueError: if the axes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    shape = [data, fsdp]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = devices // max(max(shape), 1)
    if int(np.prod(shape)) != devices or min(shape) < 1:
        raise ValueError(f"data={data} and fsdp={fsdp} do not multiply to the {devices} devices")
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(MESH_AXES))


def state_sharding(mesh: Mesh, abstract_state: Any) -> Any:
    """Shards every large array over `fsdp` along its largest divisible axis, and replicates the small ones.

    Args:
        mesh: the device mesh.
        abstract_state: a pytree of arrays or `ShapeDtypeStruct`s.

    Returns:
        A pytree of `NamedSharding`s.
    """

    def shard(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = [None] * len(leaf.shape)
        divisible = [axis for axis, length in enumerate(leaf.shape) if length % mesh.shape["fsdp"] == 0]
        if divisible and np.prod(leaf.shape) >= MIN_SHARDED_SIZE and mesh.shape["fsdp"] > 1:
            spec[max(divisible, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(shard, abstract_state)


def place(host_array: np.ndarray, where: NamedSharding) -> jax.Array:
    """Makes a global array of a host array that every process holds whole.

    Args:
        host_array: the values, the same in every process.
        where: the placement of the result; each process copies only what its devices need.

    Returns:
        The global array.
    """
    return jax.make_array_from_callback(host_array.shape, where, lambda index: host_array[index])
