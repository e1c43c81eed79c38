"""Fixtures for the memory room."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Helpers shared by the test files here; spawned children find them by the same path.
sys.path.insert(0, str(Path(__file__).parent))

from fake_backend import FakeBackend, install


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """An MPS made of figures, in use, 4 GiB held and 1 GiB of it live."""
    return install(monkeypatch, FakeBackend())


@pytest.fixture(scope="session")
def under_limits():
    """What under_limits.py saw of real data limits, by its parts' names."""
    script = Path(__file__).with_name("under_limits.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
