"""One run in several processes: how they find each other, agree, and end when one of them is gone."""

import glob
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from hamjepa_jax.errors import LostProcessError, UserError

# Seconds after which a process that is silent counts as dead, and in which all must have found each other.
HEARTBEAT_TIMEOUT, START_TIMEOUT = 60, 300
# Seconds that a process which ends with an error waits for others that end with the same one.
END_TIMEOUT = 5
# What collectives and barriers say when a process is gone.
SIGNS_OF_A_LOST_PROCESS = ("Gloo", "NCCL", "Connection closed", "Socket closed", "heartbeat", "Barrier", "UNAVAILABLE")


def start(*, coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of a run, if it has several; call it before anything asks for devices.

    With all three arguments these are taken. Without, what Slurm, Open MPI, a TPU VM or GKE say of themselves; where
    nothing speaks of several processes there is one, and nothing is started.

    Args:
        coordinator_address: HOST:PORT at which process 0 listens.
        num_processes: number of processes.
        process_id: number of this one.

    Raises:
        UserError: if some of the arguments are missing or wrong.
        LostProcessError: if the processes do not find each other.
    """
    explicit = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    given = {name: value for name, value in explicit.items() if value is not None}
    if not given and not launched_as_one_of_several(os.environ):
        return
    if given:
        _check_explicit(explicit)
    # Requests to stop, SIGTERM among them, are ours to answer.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **given,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=START_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise LostProcessError(
            f"--coordinator_address={coordinator_address}: the processes did not find each other ({reason}); all of "
            "them must be started within five minutes, with the same address and different numbers"
        ) from None


def _check_explicit(explicit: Mapping[str, object]) -> None:
    for name, value in explicit.items():
        if value is None:
            raise UserError(f"--{name}: missing; several processes need all of {', '.join(f'--{n}' for n in explicit)}")
    address, count, number = explicit.values()
    if not str(address).rpartition(":")[2].isdigit() or not str(address).rpartition(":")[0]:
        raise UserError(f"--coordinator_address: must be HOST:PORT, such as 10.0.0.1:1234, got {address!r}")
    if count < 1:
        raise UserError(f"--num_processes: must be at least 1, got {count}")
    if not 0 <= number < count:
        raise UserError(f"--process_id: must be between 0 and {count - 1}, as --num_processes={count}, got {number}")


def launched_as_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether a launcher says that this process has peers.

    Args:
        environment: the environment variables.

    Returns:
        True under `srun` and `mpirun` with more than one task, and on every TPU VM, where jax itself finds out.
    """
    if "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:
        return int(environment.get("SLURM_NTASKS", "1")) > 1
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return int(environment["OMPI_COMM_WORLD_SIZE"]) > 1
    if environment.get("JAX_PLATFORMS", "tpu") != "tpu":
        return False
    has_tpu = bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    return has_tpu and importlib.util.find_spec("libtpu") is not None


def is_primary() -> bool:
    """Whether this is the process that writes files and speaks."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """The value of the primary process, in all processes.

    Args:
        value: what this process thinks.

    Returns:
        What the primary thinks.
    """
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def on_primary(action: Callable[[], None]) -> None:
    """Lets the primary process do something while the others wait; a refusal is everyone's.

    Args:
        action: what to do; it may raise a UserError.

    Raises:
        UserError: in all processes, if the action raised one.
    """
    refusal = None
    if is_primary():
        try:
            action()
        except UserError as error:
            refusal = error
    refused = agreed(refusal is not None)
    if refusal is not None:
        raise refusal
    if refused:
        raise UserError("the primary process has refused, and says why")


def lost_process(error: Exception) -> bool:
    """Whether an error means that another process is gone.

    Args:
        error: what jax or orbax raised.

    Returns:
        True if there are other processes and the error speaks of the connection to them.
    """
    return jax.distributed.is_initialized() and any(sign in str(error) for sign in SIGNS_OF_A_LOST_PROCESS)


def leave(exit_code: int) -> None:
    """Ends a process whose run has failed, so that its peers notice; returns if there are none.

    Processes that fail alike leave together. One that fails alone would wait for the others, and they for it, so it
    does not wait for long.

    Args:
        exit_code: the exit code, not 0.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(END_TIMEOUT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
