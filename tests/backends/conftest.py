"""Fixtures for the backends: a machine with an Intel GPU."""

import sys
from pathlib import Path

import pytest

# Tests here and a person at the command line use the same stand-in.
sys.path.insert(0, str(Path(__file__).parent))

from fake_xpu import stand_in


@pytest.fixture
def xpu():
    """One Arc card with 16 GiB, not in use yet."""
    with stand_in() as fake:
        yield fake
