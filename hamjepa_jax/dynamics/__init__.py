"""Hamiltonian dynamics on phase-space states z = [q ; p]: energies, integrators and the predictors made of them."""
