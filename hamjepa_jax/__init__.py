"""Self-supervised image pretraining in JAX: Hamiltonian and Gaussian joint-embedding predictive architectures."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hamjepa_jax.pretrained import Pretrained

__version__ = "0.1.0"


def load(workdir: str | Path, *, step: int | None = None) -> "Pretrained":
    """Reads the trained encoder and predictor of a run, see `pretrained.load`."""
    # Nobody who imports a part of the package waits for the rest.
    from hamjepa_jax import pretrained

    return pretrained.load(workdir, step=step)
