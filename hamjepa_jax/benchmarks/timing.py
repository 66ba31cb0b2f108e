"""How the scripts measure: a clock for several functions, and the rates of the machine, of which floors are made."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Rows of the matrices of a product.
MATRIX_SIZE, MATRIX_SIZE_ON_ACCELERATOR = 1024, 8192
# Products in a row, and bytes that are passed over, so that starting the work takes no share of its time.
PRODUCTS = 8
RATE_BYTES = 2**31
# Bytes over which a copy is timed that has nothing to do with a particular array.
COPY_BYTES = 2**27
# How long a function is called before it is the next one's turn.
TURN_SECONDS = 0.05
# Each rate is the best of so many.
RATE_REPEATS = 10


def alternate(functions: Sequence[Callable[[], Any]], repeats: int) -> np.ndarray:
    """Times functions by turns, so that all of them meet the same disturbances.

    In a turn a function is called again and again for `TURN_SECONDS`, once at least, so that a short one meets its own
    data in the caches and not what the one before it left there. Each is called twice before.

    Args:
        functions: what is timed.
        repeats: how many turns each has.

    Returns:
        Mean seconds of a call in each turn, (functions, repeats).
    """

    def mean_seconds(function: Callable[[], Any], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls

    calls = []
    for function in functions:
        function()
        calls.append(max(1, round(TURN_SECONDS / mean_seconds(function, 1))))
    turns = [[mean_seconds(*turn) for turn in zip(functions, calls, strict=True)] for _ in range(repeats)]
    return np.array(turns).T


def use_cores(count: int) -> None:
    """Keeps the process to some of its cores, where the system lets it.

    XLA counts the cores when it makes its first array, which must come after this.

    Args:
        count: how many of those that it may use.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def matrix_rate(dtype: str = "float32") -> float:
    """Multiplications and additions a second of a large matrix product on the device.

    Args:
        dtype: type of the matrices.

    Returns:
        The rate.
    """
    size = MATRIX_SIZE if jax.default_backend() == "cpu" else MATRIX_SIZE_ON_ACCELERATOR
    # A mean of ones is one, however often it is taken.
    mean = jnp.full((size, size), 1.0 / size, dtype)

    @jax.jit
    def multiply(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, PRODUCTS, lambda _, x: jnp.matmul(mean, x, precision="highest"), x)

    x = jnp.ones((size, size), dtype)
    seconds = alternate([lambda: multiply(x).block_until_ready()], RATE_REPEATS)
    return float(PRODUCTS * 2 * size**3 / seconds.min())


def memory_rate(nbytes: int) -> float:
    """Bytes a second that the device reads and writes while it changes the signs of a float32 array in place.

    Args:
        nbytes: size of the array.

    Returns:
        The rate; each byte of the array counts twice, once read and once written.
    """
    times = max(1, RATE_BYTES // nbytes)
    negate = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, x: -x, x))
    array = jnp.ones(nbytes // 4, jnp.float32)
    seconds = alternate([lambda: negate(array).block_until_ready()], RATE_REPEATS)
    return float(2 * nbytes * times / seconds.min())


def rates(dtype: str = "float32") -> dict[str, float]:
    """What floors are made of.

    Args:
        dtype: type of the matrices.

    Returns:
        {"operations", "bytes"} a second, see `matrix_rate` and `memory_rate`.
    """
    return {"operations": matrix_rate(dtype), "bytes": memory_rate(COPY_BYTES)}
