"""Evaluation of a frozen encoder: features, nearest neighbours, linear probes, spectra, and how they are shown."""
