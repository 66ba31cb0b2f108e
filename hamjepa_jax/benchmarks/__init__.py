"""Benchmarks: one script for each question; each prints a table and writes JSON."""
