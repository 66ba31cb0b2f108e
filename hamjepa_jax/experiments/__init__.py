"""Experiments: grids of variants and seeds, run one by one or as an array job, and what their numbers say."""
