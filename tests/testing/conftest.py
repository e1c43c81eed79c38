"""Suites of their own, on which the plugin is tried."""

import _pytest.pytester
import pytest


@pytest.fixture(autouse=True)
def _imports_stay(monkeypatch):
    """Keep what a suite that runs here imports first: torch can register its operators once only.

    Before pytester, which forgets whatever was imported since it began.
    """
    snapshot = _pytest.pytester.SysModulesSnapshot

    def keeping(preserve=None):
        return snapshot(preserve=lambda name: name != "conftest" and not name.startswith("test_"))

    monkeypatch.setattr(_pytest.pytester, "SysModulesSnapshot", keeping)


@pytest.fixture
def run_suite(pytester):
    """Run a test file strictly: here, or in a fresh process, which has to import torch again."""

    def run(code, *options, fresh=False):
        pytester.makepyfile(code)
        apart = fresh or "-n" in options
        start = pytester.runpytest_subprocess if apart else pytester.runpytest_inprocess
        return start("--strict-markers", "-W", "error", *options)

    return run
