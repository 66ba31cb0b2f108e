"""The device mesh and what lies where on it: batches over every axis, large parameters over `fsdp`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hamjepa_jax.dynamics.energies import Energy
from hamjepa_jax.dynamics.predictors import Predictor

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


def description(mesh: Mesh) -> str:
    """What a run computes on, in a line: how many devices of which kind, of how many processes, in which mesh.

    Args:
        mesh: the device mesh.

    Returns:
        Such as "8 devices (TPU v5 lite) of 2 processes, mesh data 4 × fsdp 2".
    """
    devices = mesh.devices.ravel()
    kinds, processes = {device.device_kind for device in devices}, {device.process_index for device in devices}
    counts = [
        f"{count} {noun}" + plural * (count > 1)
        for count, noun, plural in ((len(devices), "device", "s"), (len(processes), "process", "es"))
    ]
    axes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{counts[0]} ({', '.join(sorted(kinds))}) of {counts[1]}, mesh {axes}"


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, leading_axes: int = 0) -> NamedSharding:
    """The first axis split over all devices, that after so many leading axes."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading_axes, MESH_AXES))


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


class Copies(NamedTuple):
    """Parameters of the predictor, and a copy of them for every device.

    XLA sums the gradient of a parameter over the devices at each of its uses, and a flow uses it many times. That of
    a copy is summed over all uses on its device first, and over the devices once.

    Attributes:
        whole: the parameters.
        of_each_device: with one more axis in front, which is split over the devices.
        mesh: the device mesh.
    """

    whole: Any
    of_each_device: Any
    mesh: Mesh


def with_whole_parameters(loss: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A loss that gathers its parameters, which are kept in parts, to use them whole.

    XLA would otherwise split operations like their parameters. On a mesh with both axes the gradient that flows back
    through a convolution with a split kernel could then come out multiplied by the number of devices along `data`, see
    docs/numerics.md.

    Args:
        loss: a function of {"encoder", "predictor"} and other arguments, the predictor made by `on_each_device`.
        mesh: the device mesh.

    Returns:
        The same function of parameters on the mesh, however they are placed.
    """

    def copy(leaf: jax.Array) -> jax.Array:
        copies = jnp.broadcast_to(leaf, (mesh.size, *leaf.shape))
        return jax.lax.with_sharding_constraint(copies, batch_sharding(mesh))

    def gathered(params: Any, *arguments: Any) -> Any:
        whole = jax.lax.with_sharding_constraint(params, replicated(mesh))
        predictor = whole["predictor"]
        if mesh.size > 1:
            predictor = Copies(predictor, jax.tree.map(copy, predictor), mesh)
        return loss(whole | {"predictor": predictor}, *arguments)

    return gathered


def on_each_device(predictor: Predictor) -> Predictor:
    """A predictor that uses, for the examples of each device, the device's own copy of the parameters.

    Args:
        predictor: the predictor.

    Returns:
        The same predictor, which takes `Copies` besides plain parameters.
    """

    def apply(params: Any, z: jax.Array, direction: int = 1, residual_scale: float | jax.Array = 1.0) -> jax.Array:
        if not isinstance(params, Copies):
            return predictor.apply(params, z, direction, residual_scale)

        def apply_own(copies: Any, examples: jax.Array, residual_scale: jax.Array) -> jax.Array:
            own = jax.tree.map(lambda copy: jnp.squeeze(copy, axis=0), copies)
            return predictor.apply(own, examples, direction, residual_scale)

        examples = PartitionSpec(*[None] * (z.ndim - 2), MESH_AXES)
        specs = {"in_specs": (PartitionSpec(MESH_AXES), examples, PartitionSpec()), "out_specs": examples}
        apply_everywhere = jax.shard_map(apply_own, mesh=params.mesh, **specs)
        return apply_everywhere(params.of_each_device, z, jnp.asarray(residual_scale, jnp.float32))

    return predictor._replace(apply=apply)


def on_whole_parameters(energy: Energy) -> Energy:
    """An energy that takes `Copies` besides plain parameters, see `on_each_device`."""

    def whole(function: Callable[..., jax.Array] | None) -> Callable[..., jax.Array] | None:
        def of_parameters(params: Any, *arguments: Any, **settings: Any) -> jax.Array:
            return function(params.whole if isinstance(params, Copies) else params, *arguments, **settings)

        return None if function is None else of_parameters

    return Energy(energy.init, whole(energy.value), whole(energy.potential), whole(energy.inverse_mass))


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


def whole_on_one_device(tree: Any, mesh: Mesh) -> Any:
    """Gathers arrays, however they are placed, on one device of every process.

    Args:
        tree: a pytree of global arrays.
        mesh: the device mesh.

    Returns:
        The same pytree of arrays that need no other device and no other process.
    """
    gathered = jax.jit(lambda arrays: arrays, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda array: array.addressable_data(0), gathered)
