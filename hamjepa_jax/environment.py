"""Where the process runs: devices, machine, cores and software versions."""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from hamjepa_jax.errors import UserError

# Of glibc's mallopt: the parameters, what keeps freed memory, and what gives it back. Once told anything, glibc no
# longer adapts to the sizes that a program frees; these are the largest that it would have come to.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEP = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}
_RETURN = {_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25, _MMAP_MAX: 65536}

PACKAGES = ("hamjepa_jax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pillow")


def on_one_cpu() -> bool:
    """Whether everything is computed by a single device, which is a CPU."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def loops_are_slow() -> bool:
    """Whether a loop around a training step makes it slower: XLA's CPU shares out the work inside of one less well."""
    return jax.default_backend() == "cpu"


def compute_in_the_calling_thread() -> None:
    """Has a CPU compute where it is asked to, so that `reusing_memory` works; call it before anything asks for devices.

    Other threads get their memory elsewhere, and what is computed besides would only share the same cores.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


@contextlib.contextmanager
def reusing_memory() -> Iterator[None]:
    """While it lasts, memory that a step on a CPU frees is kept for the next, where the C library is glibc.

    Given back to the system, a gigabyte of it has to be mapped again page by page, which takes a sixth of a step.
    """
    library = ctypes.CDLL(None) if os.name == "posix" and on_one_cpu() else None
    tunable = hasattr(library, "mallopt")

    def tune(settings: dict[int, int]) -> None:
        for parameter, value in settings.items() if tunable else ():
            library.mallopt(parameter, value)

    tune(_KEEP)
    try:
        yield
    finally:
        tune(_RETURN)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)


def compiler_options(chosen: str = "") -> dict[str, str]:
    """What the compiler of a training step is told besides the program; see `models.convolution.computed_once`.

    Args:
        chosen: further options of XLA, NAME=VALUE with commas between them: config.train.compiler_options.

    Returns:
        Values by name.

    Raises:
        UserError: if XLA knows no such option, or takes no such value for it.
    """
    # This pass drops the barriers on a CPU.
    options = quick_compilation() | {"xla_disable_hlo_passes": "cse_barrier_expander"} if on_one_cpu() else {}
    for option in filter(None, chosen.split(",")):
        name, _, value = option.strip().removeprefix("--").partition("=")
        # As XLA_FLAGS has them, and as the compiler wants them here.
        options[name] = {"true": "True", "false": "False"}.get(value, value)
    if chosen:
        try:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
        except jax.errors.JaxRuntimeError as error:
            raise UserError(
                f"config.train.compiler_options: {str(error).partition(': ')[2]}; give options of XLA for this "
                f"backend ({jax.default_backend()}) as NAME=VALUE,NAME=VALUE, got {chosen!r}"
            ) from None
    return options


def quick_compilation() -> dict[str, str]:
    """Options with which XLA compiles a fifth faster on a CPU what then runs as fast: fewer passes of LLVM."""
    return {"xla_backend_optimization_level": "1"} if jax.default_backend() == "cpu" else {}


def jit_quickly(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """jax.jit with `quick_compilation`, once it is known where: at the first call, not when a module is read.

    Args:
        function: called from outside of other jitted functions alone, which have options of their own.
        **settings: see jax.jit.

    Returns:
        The jitted function.
    """

    @functools.cache
    def jitted() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=quick_compilation(), **settings)

    return functools.wraps(function)(lambda *arguments, **keywords: jitted()(*arguments, **keywords))


def keep_compiled_programs() -> None:
    """Has what is compiled kept in the user's cache directory, from which the next process takes it.

    JAX_COMPILATION_CACHE_DIR keeps it elsewhere, and JAX_ENABLE_COMPILATION_CACHE=false not at all.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    directory = caches / "hamjepa_jax" / f"compiled-{_instruction_set()}"
    # Not everybody has a home, or may write to it.
    with contextlib.suppress(OSError):
        if directory.is_absolute():
            directory.mkdir(parents=True, exist_ok=True)
            if os.access(directory, os.W_OK):
                jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
                jax.config.update("jax_compilation_cache_dir", str(directory))


def _instruction_set() -> str:
    """A short name of what the processor can do: a program for one may crash another that shares the directory."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]


def describe() -> dict[str, object]:
    """The machine and the software of this process.

    Returns:
        {"processor", "cores", "accelerators", "python", "packages": {name: version}}; cores are those that this
        process may use.
    """
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerators": sorted({d.device_kind for d in jax.devices() if d.platform != "cpu"}),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }
