"""What a module remembers must not cross the border of a simulated Mac, in either direction."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mpskit
from mpskit._base import state

SOURCE = Path(mpskit.__file__).parent
# These rooms remember facts of torch's operators, which are the same on every machine.
OPERATORS = {"dispatch", "estimate", "simulation"}
# Not about the machine: what has been said once, and one lock for each process.
NEVER_SET_ASIDE = {
    "device/choice.py:_announced",
    "memory/cache.py:_locks",
    "_base/state.py:_registry",
    "backends/facts.py:_troubles",  # torch says it once a process
}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_registry", [])


def test_everything_is_emptied_and_put_back(registry) -> None:
    sizes, kinds = state.remembered({"cpu": 1}), state.remembered({"cpu"})
    put_back = state.set_aside()
    assert (sizes, kinds) == ({}, set())
    sizes["mps"], late = 2, state.remembered({"mps": 3})
    kinds.add("mps")
    put_back()
    assert (sizes, kinds, late) == ({"cpu": 1}, {"cpu"}, {})


def test_what_a_simulated_mac_showed_is_forgotten() -> None:
    """Else an empty_cache() on a Mac with torch before 2.13 would freeze its watermarks."""
    import torch

    from mpskit.memory import cache, limit, snapshot

    before = [one.copy() for one in (cache._seen, limit._caps, snapshot._seen)]
    with mpskit.simulate("m1-8gb"):
        assert cache._seen == set()
        kept = torch.zeros(4, device="mps")
        mpskit.empty_cache("mps")
        mpskit.memory_snapshot("mps")
        mpskit.limit_memory("50%", "mps")
        assert ("mps" in cache._seen, "mps" in limit._caps, bool(snapshot._seen)) == (True,) * 3
        del kept
    assert [cache._seen, limit._caps, snapshot._seen] == before


def containers(path: Path) -> list[str]:
    """Return the module's variables that start as an empty dict, list or set."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and ast.unparse(node.value) in (
            "{}",
            "[]",
            "set()",
            "dict()",
        ):
            found.append(target.id)
    return [name for name in found if not name.startswith("__")]


def test_every_module_that_remembers_something_registers_it() -> None:
    found = {
        f"{path.relative_to(SOURCE).as_posix()}:{name}"
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] not in OPERATORS
        for name in containers(path)
    }
    assert found == NEVER_SET_ASIDE
