"""Where a number was measured: machine, cores and software versions."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax

PACKAGES = ("hamjepa_jax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pillow")


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
