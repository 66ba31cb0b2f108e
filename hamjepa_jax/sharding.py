"""The device mesh and what lies where on it: batches over every axis, large parameters over `fsdp`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 2**16


def make_mesh(*, data: int, fsdp: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices in a mesh with the axes `data` and `fsdp`.

    Args:
        data: devices along the axis over which only the batch is split, or −1 for the rest.
        fsdp: devices along the axis over which parameters are split as well, or −1 for the rest.
        devices: the devices, or None for all of all processes.

    Returns:
        The mesh.

    Raises:
        ValueError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = len(devices) // max(max(shape), 1)
    if int(np.prod(shape)) != len(devices) or min(shape) < 1:
        raise ValueError(f"data={data} and fsdp={fsdp} do not multiply to the {len(devices)} devices")
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


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


def with_whole_parameters(loss: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A loss that gathers its parameters, which are kept in parts, to use them whole.

    XLA would otherwise split operations like their parameters. On a mesh with both axes the gradient that flows back
    through a convolution with a split kernel then came out multiplied by the number of devices along `data`.

    Args:
        loss: a function of the parameters and other arguments.
        mesh: the device mesh.

    Returns:
        The same function of parameters on the mesh, however they are placed.
    """

    def gathered(params: Any, *arguments: Any) -> Any:
        return loss(jax.lax.with_sharding_constraint(params, replicated(mesh)), *arguments)

    return gathered


def place(host_arrays: Any, where: NamedSharding) -> Any:
    """Makes global arrays of host arrays that every process holds whole.

    Args:
        host_arrays: a pytree of values, the same in every process.
        where: the placement of each result; each process copies only what its devices need.

    Returns:
        The global arrays.
    """

    def make(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return jax.tree.map(make, host_arrays)


def place_shares(host_arrays: Any, where: NamedSharding) -> Any:
    """Makes global arrays of the parts that the processes hold.

    Args:
        host_arrays: a pytree of this process's shares of the leading axis.
        where: the placement of each result.

    Returns:
        The global arrays.
    """
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(where, array), host_arrays)
