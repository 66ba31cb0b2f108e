"""Self-supervised image pretraining in JAX: Hamiltonian and Gaussian joint-embedding predictive architectures."""

__version__ = "0.1.0"
