"""The pytest plugin's marker ``mpskit_rehearse``: a test that runs on a Mac without its numbers.

``mpskit.testing.plugin`` loads this file in every pytest run, so it imports neither torch nor
pydantic until a test has the marker.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from mpskit._base.arguments import shown
from mpskit.testing.simulation import DEFAULT_MACHINE, outside, usage_errors

if TYPE_CHECKING:
    from mpskit.rehearsal.result import Rehearsal
    from mpskit.rehearsal.run import RehearsalRun

__all__: list[str] = []

_MARKER = "mpskit_rehearse"
_LINE = (
    f"{_MARKER}(*machines, severity='stops', **options): rehearse the test, and fail if it does "
    "not fit a machine or has findings of that severity; options of mpskit.rehearse"
)
_KEY = pytest.StashKey["RehearsalRun"]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker for ``--strict-markers``."""
    config.addinivalue_line("markers", _LINE)


@pytest.fixture
def _mpskit_rehearsal(request: pytest.FixtureRequest) -> Iterator[None]:
    """Rehearse the test and its fixtures; the marker asks for it, before all others."""
    from mpskit.testing.plugin import skip_unless_usable

    with ExitStack() as stack:
        with usage_errors():
            run = _run_of(request)
            stack.enter_context(outside())
            stack.enter_context(run)
        request.node.stash[_KEY] = run
        skip_unless_usable(request.node)
        yield


def _run_of(request: pytest.FixtureRequest) -> RehearsalRun:
    from mpskit.errors import ArgumentError
    from mpskit.rehearsal import rehearse

    if "mpskit_mac" in request.fixturenames:
        raise ArgumentError(
            f"{_MARKER} brings its own machine: name it there, and leave out mpskit_machine and "
            "mpskit_mac",
            given=request.node.nodeid,
        )
    mark = request.node.get_closest_marker(_MARKER)
    _severities(mark)
    options = {key: value for key, value in mark.kwargs.items() if key != "severity"}
    machines: Any = list(mark.args) or DEFAULT_MACHINE
    return rehearse(machines, **options)


def _severities(mark: pytest.Mark) -> tuple[str, ...]:
    """Return the severities that fail the test: the one that is named, and what is more serious.

    Raises:
        ArgumentError: there is none of that name.
    """
    from mpskit.errors import ArgumentError
    from mpskit.rehearsal.result import SEVERITIES

    given = mark.kwargs.get("severity", "stops")
    if given not in SEVERITIES:
        known = ", ".join(map(repr, SEVERITIES))
        raise ArgumentError(f"severity={shown(given)} is not one of {known}", given=given)
    return SEVERITIES[: SEVERITIES.index(given) + 1]


# Inside of the wrappers that look at limits, which then see a test that has ended by itself.
@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """End the test with its rehearsal, and fail it by what was found."""
    mark, run = item.get_closest_marker(_MARKER), item.stash.get(_KEY, None)
    if mark is None:
        return (yield)
    if run is None:  # it uses no fixtures (unittest), so it would run here as if unmarked
        pytest.fail(f"{_MARKER} marks functions and plain classes only", pytrace=False)
    try:
        result = yield
    except BaseException as error:
        if not run.conclude(error):
            raise
        result = None
    else:
        run.conclude(None)
    problems = _problems(run.report, _severities(mark))
    if problems:
        pytest.fail(f"{_MARKER}:\n" + "\n".join(problems), pytrace=False)
    return result


def _problems(report: Rehearsal, severities: tuple[str, ...]) -> list[str]:
    """Return what a test is failed for, a line each."""
    from mpskit.rehearsal.result import Verdict

    machines = [str(one) for one in report.machines if one.verdict is Verdict.DOES_NOT_FIT]
    findings = [f"{one.severity}: {one}" for one in report.findings if one.severity in severities]
    return machines + findings
