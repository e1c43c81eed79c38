"""Reads the data files that ship with the package, each once."""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["read_csv", "read_json", "read_toml"]


# The parsers are imported where they are used: choosing a device on Linux reads no table.
def _text(name: str) -> str:
    from importlib import resources

    return resources.files("mpskit").joinpath("data", name).read_text(encoding="utf-8")


@functools.cache
def read_toml(name: str) -> dict[str, Any]:
    """Return a TOML file of ``mpskit/data`` as tables."""
    import tomllib

    return tomllib.loads(_text(name))


@functools.cache
def read_json(name: str) -> dict[str, Any]:
    """Return a JSON file of ``mpskit/data``, an object."""
    import json

    found: dict[str, Any] = json.loads(_text(name))
    return found


@functools.cache
def read_csv(name: str) -> tuple[dict[str, str], ...]:
    """Return the rows of a CSV file of ``mpskit/data`` by column; ``#`` lines are comments."""
    import csv

    lines = [line for line in _text(name).splitlines() if not line.startswith("#")]
    return tuple(csv.DictReader(lines))
