"""Every test starts from a machine that remembers nothing, and leaves nothing behind."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of the code: no example fails for the time it took.
settings.register_profile(
    "mpskit",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("mpskit")

# Helpers of several rooms lie beside this file.
sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache folder, nor sees the user's MPSKIT_* variables."""
    for name in [name for name in os.environ if name.startswith("MPSKIT_")]:
        if name != "MPSKIT_SIMULATE":
            monkeypatch.delenv(name)
    # accelerate sets this one for the whole process, which changes what a simulated Mac raises.
    for name in ("LOCAL_RANK", "PYTORCH_ENABLE_MPS_FALLBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPSKIT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
