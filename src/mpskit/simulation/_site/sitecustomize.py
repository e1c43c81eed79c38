"""Runs at the start of every Python that a simulated Mac starts; see simulation/children.py."""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def _enter() -> None:
    try:
        from mpskit.simulation import children
    except ImportError:
        return  # another Python, without mpskit: it is outside
    children.at_startup()


def _run_the_users_own() -> None:
    """Run the ``sitecustomize`` that this one hides, under its own name."""
    here = Path(__file__).parent
    spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if Path(path) != here])
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_enter()
_run_the_users_own()
