"""Every test starts from a machine that remembers nothing, and leaves nothing behind."""

import contextlib
import gc
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mpskit.backends import versions
from mpskit.errors import UnsupportedTorchError

INSTALLED = versions.torch_version()  # before a test puts another in its place

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


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "needs_torch(feature): skipped where backends.versions says that torch lacks it"
    )
    config.addinivalue_line(
        "markers",
        "from_torch(version, what): skipped on an older torch, to which it names the lack",
    )


def pytest_collection_finish():
    _leave_to_the_end()


@pytest.hookimpl(trylast=True)  # when a file's own fixtures are gone
def pytest_runtest_teardown(item, nextitem):
    if nextitem is None or nextitem.path != item.path:
        _leave_to_the_end()


def _leave_to_the_end():
    """Let no search for garbage go through what is there already: torch, trainers, 7,000 tests.

    Searches are what many tests are about; each took half a second of a worker that had imported
    everything, and a hundredth of that is left.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    for mark in item.iter_markers("needs_torch"):
        skip_without(*mark.args)
    for mark in item.iter_markers("from_torch"):
        since, what = mark.args
        if versions.older(INSTALLED, since):
            pytest.skip(f"{what} from torch {since}, not in {INSTALLED}")
    with _too_old_is_a_skip():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with _too_old_is_a_skip():
        return (yield)


class _TooOld(pytest.Module):
    """A file that needs a newer torch as a whole, and cannot always be imported on an older one."""

    def collect(self):
        skip_without(_needed_by(self.path), allow_module_level=True)
        return super().collect()


def pytest_pycollect_makemodule(module_path, parent):
    feature = _needed_by(module_path)
    if feature is not None and not versions.has(feature, versions.torch_version()):
        return _TooOld.from_parent(parent, path=module_path)
    return None


def _needed_by(path):
    """Return what ``pytestmark`` says that a file needs; nothing in tests/simulation goes without."""
    if path.parent.name == "simulation":
        return "simulation"
    marks = r'^pytestmark = (?:\[[^]]*?|.*)needs_torch\("(.+?)"\)'
    mark = re.search(marks, path.read_text("utf-8"), re.M)
    return mark and mark[1]


def skip_without(feature, **options):
    """Skip on a torch that lacks a feature, naming the feature and the versions."""
    version = versions.torch_version()
    if not versions.has(feature, version):
        since, until = versions.FEATURES[feature]
        needed = f"from {since}" + (f" until {until}" if until else "")
        pytest.skip(f"{feature} is in torch {needed}, not in {version}", **options)


@contextlib.contextmanager
def _too_old_is_a_skip():
    """Skip a test to which the library itself said that this torch is too old.

    On a torch that the table refuses nothing, the refusal is a fault and fails the test.
    """
    try:
        yield
    except UnsupportedTorchError as error:
        if all(versions.has(feature, INSTALLED) for feature in versions._REFUSED):
            raise
        pytest.skip(str(error))
