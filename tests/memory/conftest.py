"""Fixtures for the memory room."""

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
