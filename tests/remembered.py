"""Estimates and counts of a config that many plans ask for, traced once in each test process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpskit.plan import jobs

_TRACED = ("estimate_from_config", "workload_from_config")
_known: dict[str, Any] = {}


def remember_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plans of this test take what an earlier one traced with the same arguments.

    A trace depends on its arguments alone, a file on what is in it; its result cannot be changed.
    """
    for name in _TRACED:
        monkeypatch.setattr(jobs, name, _remembering(name, getattr(jobs, name)))


def _remembering(name: str, trace: Callable[..., Any]) -> Callable[..., Any]:
    def traced(config: Any, **asked: Any) -> Any:
        is_file = isinstance(config, str) and config.endswith(".json")
        found = json.loads(Path(config).read_text("utf-8")) if is_file else config
        key = json.dumps([name, found, asked], sort_keys=True)
        if key not in _known:
            _known[key] = trace(config, **asked)
        return _known[key]

    return traced
