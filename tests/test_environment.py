import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hamjepa_jax import environment
from hamjepa_jax.errors import UserError


def test_several_devices_are_not_one_cpu():
    assert jax.device_count() > 1
    assert not environment.on_one_cpu()
    assert environment.compiler_options() == {}
    assert environment.quick_compilation() == {"xla_backend_optimization_level": "1"}


def test_a_function_is_jitted_where_it_is_called(monkeypatch):
    traced, asked = [], []
    monkeypatch.setattr(environment, "quick_compilation", lambda: asked.append(1) or {})

    @partial(environment.jit_quickly, static_argnames="times")
    def repeated(x, *, times):
        """Repeats."""
        traced.append(1)
        return jnp.tile(x, times)

    assert not asked
    assert repeated.__doc__ == "Repeats."
    for _ in range(2):
        np.testing.assert_array_equal(repeated(np.ones(2), times=2), np.ones(4))
    assert traced == asked == [1]


@pytest.mark.parametrize("kept", [False, True])
def test_the_compiler_keeps_barriers_on_one_cpu(monkeypatch, kept):
    monkeypatch.setattr(environment, "on_one_cpu", lambda: kept)

    def twice(x):
        y = jax.lax.optimization_barrier(jnp.sin(x))
        return y + 1, y * 2

    compiled = jax.jit(twice, compiler_options=environment.compiler_options()).lower(np.ones(8)).compile()
    assert ("opt-barrier" in compiled.as_text()) == kept


def test_options_of_the_compiler_are_chosen(monkeypatch):
    chosen = "xla_cpu_enable_fast_min_max=true, --xla_gpu_all_reduce_combine_threshold_bytes=1024"
    options = {"xla_cpu_enable_fast_min_max": "True", "xla_gpu_all_reduce_combine_threshold_bytes": "1024"}
    assert environment.compiler_options(chosen) == options
    monkeypatch.setattr(environment, "on_one_cpu", lambda: True)
    assert environment.compiler_options(chosen).items() > options.items()


@pytest.mark.parametrize(
    ("chosen", "wrong"),
    [
        ("xla_fast=true", "No such compile option: 'xla_fast'"),
        ("xla_cpu_enable_fast_math=perhaps", "While setting option xla_cpu_enable_fast_math, 'perhaps' is not a valid"),
        ("xla_cpu_enable_fast_math", "While setting option xla_cpu_enable_fast_math, '' is not a valid bool value"),
        ("true", "No such compile option: 'true'"),
    ],
)
def test_options_that_the_compiler_does_not_take_get_one_line(chosen, wrong):
    with pytest.raises(UserError) as refused:
        environment.compiler_options(chosen)
    assert str(refused.value).startswith(f"config.train.compiler_options: {wrong}")
    assert str(refused.value).endswith(f"as NAME=VALUE,NAME=VALUE, got {chosen!r}")
    assert "\n" not in str(refused.value)


@pytest.fixture
def no_cache_yet():
    there = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", there)


@pytest.mark.parametrize(("variable", "below"), [("XDG_CACHE_HOME", "."), ("HOME", ".cache")])
def test_compiled_programs_are_kept_in_the_cache_of_the_user(monkeypatch, tmp_path, no_cache_yet, variable, below):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    environment.keep_compiled_programs()
    directory = Path(jax.config.jax_compilation_cache_dir)
    assert directory.is_dir()
    assert directory.parent == tmp_path / below / "hamjepa_jax"
    # Where the user has them kept already, they stay.
    monkeypatch.setenv(variable, str(tmp_path / "another"))
    environment.keep_compiled_programs()
    assert Path(jax.config.jax_compilation_cache_dir) == directory


def test_without_a_directory_that_can_be_written_nothing_is_kept(monkeypatch, tmp_path, no_cache_yet):
    (tmp_path / "file").write_text("in the way")
    for caches in (tmp_path / "file", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
        environment.keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir is None


def test_processors_that_differ_share_no_compiled_programs(monkeypatch):
    names = set()
    for features in ("sse avx", "sse avx avx512"):
        monkeypatch.setattr(environment.Path, "exists", lambda self: True)
        monkeypatch.setattr(environment.Path, "read_text", lambda self, features=features: f"x: 1\nflags : {features}")
        names.add(environment._instruction_set())
    assert len(names) == 2


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
    assert calls[2:] == [(-1, 2**26), (-3, 2**25), (-4, 65536), "trim"]


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
from hamjepa_jax.errors import UserError
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
    # On a busy machine a computation may still run in another thread now and then. Later versions of XLA map memory in
    # pages so large that there are few of them either way.
    assert kept < max(0.5 * returned, 50_000) or platform.libc_ver()[0] != "glibc"
