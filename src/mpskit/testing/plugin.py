"""The pytest plugin: device fixtures and markers, and simulated machines.

Every pytest run in the environment imports this file, so it imports neither torch nor pydantic
until a test asks for a device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from mpskit._base.arguments import shown
from mpskit.backends.kinds import ACCELERATORS
from mpskit.testing.simulation import simulated

if TYPE_CHECKING:
    import torch

__all__: list[str] = []

# Simulated machines and rehearsals have their own files, which import no torch either.
pytest_plugins = ("mpskit.testing.simulation", "mpskit.testing.rehearsal")

_ANY = "accelerator"
_REQUIREMENTS = (*ACCELERATORS, _ANY)
_MARKER = (
    f"mpskit_requires(device): skip unless one of {', '.join(_REQUIREMENTS)} can be used; "
    "the skip says why not"
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker for ``--strict-markers``."""
    config.addinivalue_line("markers", _MARKER)


def pytest_report_header() -> str:
    """Name the device that the tests get."""
    from mpskit.errors import MpskitError

    try:
        return f"mpskit: {_header()}"
    except MpskitError as error:
        return f"mpskit: {error}"


def _header() -> str:
    if "torch" in sys.modules:
        from mpskit.device import get_optimal_device

        info = get_optimal_device().info
        return f"device {info.device} ({info.reason})"
    from mpskit.device.expect import expected_device

    return f"device {expected_device()} expected (torch is not imported yet)"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``mpskit_each_device`` once on every usable device."""
    if "mpskit_each_device" in metafunc.fixturenames:
        from mpskit.testing.simulation import each_machine

        devices = [device for _ in each_machine(metafunc) for device in _usable_devices()]
        metafunc.parametrize("mpskit_each_device", dict.fromkeys(devices), indirect=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a device that this machine has not; on a simulated one its fixture does."""
    if simulated(getattr(item, "fixturenames", ())) is None:
        skip_unless_usable(item)


def skip_unless_usable(item: pytest.Item) -> None:
    """Skip a test that is marked to need a device that the machine has not, as it is now."""
    for mark in item.iter_markers("mpskit_requires"):
        if len(mark.args) != 1 or mark.args[0] not in _REQUIREMENTS:
            # A failure without a traceback: a UsageError here prints this file's source.
            pytest.fail(
                f"mpskit_requires takes one of {', '.join(_REQUIREMENTS)}, not {shown(mark.args)}",
                pytrace=False,
            )
        reason = _why_not(mark.args[0])
        if reason is not None:
            pytest.skip(reason)


@pytest.fixture
def _mpskit_machine_first(request: pytest.FixtureRequest) -> None:
    """Be on the test's simulated Mac before its device is chosen, whatever the arguments' order."""
    fixture = simulated(request.fixturenames)
    if fixture is not None:
        request.getfixturevalue(fixture)


@pytest.fixture
def mpskit_device(_mpskit_machine_first: None) -> torch.device:
    """The best device here, as `mpskit.get_optimal_device` chooses it."""
    from mpskit.device import get_optimal_device

    return get_optimal_device().device


@pytest.fixture
def mpskit_each_device(
    request: pytest.FixtureRequest, _mpskit_machine_first: None
) -> Iterator[torch.device]:
    """Every usable device in turn; the machine's cache of it is emptied afterwards."""
    import torch

    device = torch.device(request.param)
    if request.param not in _usable_devices():  # another of the test's machines has it
        pytest.skip(_why_not(request.param) or f"needs {request.param}")
    yield device
    if device.type != "cpu":
        from mpskit.memory import empty_cache

        empty_cache(device)


def _statuses() -> list[Any]:
    from mpskit.backends.facts import read_torch
    from mpskit.device.choice import backend_statuses
    from mpskit.host import detect_host
    from mpskit.settings import read_settings

    return backend_statuses(detect_host(), read_torch(), read_settings())


def _usable_devices() -> list[str]:
    return [status.device for status in reversed(_statuses()) if status.usable]


def _why_not(requirement: str) -> str | None:
    """Return why the requirement does not hold, or None if it does."""
    statuses = [status for status in _statuses() if status.device != "cpu"]
    if requirement != _ANY:
        statuses = [status for status in statuses if status.device == requirement]
    if any(status.usable for status in statuses):
        return None
    return f"needs {requirement}: " + "; ".join(status.reason for status in statuses)
