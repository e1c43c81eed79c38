"""Helpers for a training loop: data loading, transfers, precision, threads, staying awake."""
