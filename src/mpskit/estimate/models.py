"""The bundled models: whose configs ship with the package, and which one a name means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpskit._base.arguments import shown
from mpskit._base.data import read_json
from mpskit.errors import ArgumentError

__all__ = ["bundled_models", "find_model"]


def bundled_models() -> Mapping[str, Mapping[str, Any]]:
    """Return the configs of ``data/model_specs.json`` by name, without the aliases of a shape."""
    return read_json("model_specs.json")


def find_model(name: str) -> str:
    """Return the full name of a bundled model.

    Args:
        name: ``Qwen/Qwen2.5-7B``, or ``qwen2.5-7b`` where only one owner has it; case does not
            matter.

    Raises:
        ArgumentError: no bundled model has that name; the message lists near ones.
    """
    names: list[str] = [
        full
        for model, config in bundled_models().items()
        for full in (model, *config.get("same_architecture", ()))
    ]
    wanted = name.strip().casefold()
    for full in names:
        if wanted in (full.casefold(), full.casefold().rpartition("/")[2]):
            return full
    raise ArgumentError(
        f"no bundled model is called {shown(name)}: {_near(wanted, names)}`mpskit estimate --list` "
        "shows all, and a config.json or FILE.py:NAME takes any other",
        given=name,
    )


def _near(wanted: str, names: list[str]) -> str:
    import difflib

    short = {full.casefold().rpartition("/")[2]: full for full in names}
    found = difflib.get_close_matches(wanted.rpartition("/")[2], short, n=4, cutoff=0.5)
    return f"near: {', '.join(short[key] for key in found)}; " if found else ""
