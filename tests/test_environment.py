import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax import environment


def test_several_devices_are_not_one_cpu():
    assert jax.device_count() > 1
    assert not environment.on_one_cpu()
    assert environment.compiler_options() == {}


@pytest.mark.parametrize("kept", [False, True])
def test_the_compiler_keeps_barriers_on_one_cpu(monkeypatch, kept):
    monkeypatch.setattr(environment, "on_one_cpu", lambda: kept)

    def twice(x):
        y = jax.lax.optimization_barrier(jnp.sin(x))
        return y + 1, y * 2

    compiled = jax.jit(twice, compiler_options=environment.compiler_options()).lower(np.ones(8)).compile()
    assert ("opt-barrier" in compiled.as_text()) == kept


def test_memory_is_kept_for_a_while_and_then_given_back(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))

        def malloc_trim(self, left):
            calls.append("trim")

    monkeypatch.setattr(environment, "on_one_cpu", lambda: True)
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda name: Library())
    with environment.reusing_memory():
        assert calls == [(-1, -1), (-4, 0)]
    assert calls[2:] == [(-1, 128 * 1024), (-4, 65536), "trim"]


@pytest.mark.parametrize("one_cpu", [False, True])
def test_memory_is_left_alone_where_there_is_no_glibc_or_an_accelerator(monkeypatch, one_cpu):
    opened = []
    monkeypatch.setattr(environment, "on_one_cpu", lambda: one_cpu)
    # A library without any function.
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda name: opened.append(name) or object())
    with environment.reusing_memory():
        assert len(opened) == one_cpu


# What one process prints: page faults of twelve computations with 192 MiB of intermediate results each.
FAULTS = """
import contextlib, resource, sys
import jax, jax.numpy as jnp
from hamjepa_jax import environment
environment.compute_in_the_calling_thread()
@jax.jit
def compute(x):
    return sum(jnp.sin(x @ jnp.full((64, 64), scale)).sum(0) for scale in (0.1, 0.2, 0.3))
x = jnp.ones((2**18, 64))
with environment.reusing_memory() if sys.argv[1] == "True" else contextlib.nullcontext():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(12):
        compute(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_most_steps_map_no_memory_anew():
    environment_of_one_cpu = {"JAX_PLATFORMS": "cpu", "PATH": ""}
    returned, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, str(keep)],
                env=environment_of_one_cpu,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for keep in (False, True)
    )
    assert returned > 100_000
    # On a busy machine a computation may still run in another thread now and then.
    assert (kept < 0.5 * returned) == (platform.libc_ver()[0] == "glibc")
