"""Estimates and counts of a config that many plans ask for, traced once in each test process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mpskit.plan import jobs

_TRACED = ("estimate_from_config", "workload_from_config")
_known: dict[str, Any] = {}


def remember_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plans of this test take what an earlier one traced with the same arguments.

    A trace depends on its arguments alone and its result cannot be changed. A config that is given
    as a path is traced anew: the file may be another one.
    """
    for name in _TRACED:
        monkeypatch.setattr(jobs, name, _remembering(name, getattr(jobs, name)))


def _remembering(name: str, trace: Callable[..., Any]) -> Callable[..., Any]:
    def traced(config: Any, **asked: Any) -> Any:
        if isinstance(config, str) and config.endswith(".json"):
            return trace(config, **asked)
        key = json.dumps([name, config, asked], sort_keys=True)
        if key not in _known:
            _known[key] = trace(config, **asked)
        return _known[key]

    return traced
