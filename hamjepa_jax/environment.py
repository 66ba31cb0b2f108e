"""Where the process runs: devices, machine, cores and software versions."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax

# Of glibc's mallopt: the parameters, what keeps freed memory, and what they are otherwise.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEEP = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}
_RETURN = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}

PACKAGES = ("hamjepa_jax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pillow")


def on_one_cpu() -> bool:
    """Whether everything is computed by a single device, which is a CPU."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


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


def compiler_options() -> dict[str, str]:
    """What the compiler of a training step is told besides the program; see `models.convolution.computed_once`."""
    # This pass drops the barriers on a CPU.
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if on_one_cpu() else {}


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
