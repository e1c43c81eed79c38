"""The pytest plugin's simulated machines: fixture, option and markers.

``mpskit.testing.plugin`` loads this file in every pytest run, so it imports neither torch nor
pydantic until a test or the option asks for a machine.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import types
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mpskit.host import Machine
    from mpskit.simulation.lifecycle import SimulatedMac

__all__ = ["DEFAULT_MACHINE", "each_machine", "outside", "simulated", "usage_errors"]

DEFAULT_MACHINE = "m1-8gb"
_FIXTURE = "mpskit_mac"
_MARKER = "mpskit_machine"
# marker -> the fixture that it asks for
_FIXTURES = {_MARKER: _FIXTURE, "mpskit_rehearse": "_mpskit_rehearsal"}
_FALLBACK_WARNING = ".*will fall back to run on the CPU.*"
_MARKERS = (
    "mpskit_machine(*machines, **options): run on each simulated Mac; options of mpskit.simulate",
    "mpskit_no_cpu_fallback: fail if an operator that MPS lacks runs on the CPU instead",
    "mpskit_max_memory(size): fail if tensors on the device take more at once than a size ('2GiB')",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--mpskit-machine``."""
    parser.getgroup("mpskit").addoption(
        "--mpskit-machine",
        metavar="NAME",
        help="run the whole suite on a simulated Mac (names: mpskit simulate --list)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Enter the machine of ``--mpskit-machine`` before any conftest imports torch."""
    name = getattr(early_config.known_args_namespace, "mpskit_machine", None)
    if not name:
        return
    from mpskit.errors import MpskitError

    stack = contextlib.ExitStack()
    try:
        stack.enter_context(_on({"machine": name}))
    except MpskitError as error:
        raise pytest.UsageError(str(error)) from None
    early_config.add_cleanup(stack.close)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers for ``--strict-markers``."""
    for line in _MARKERS:
        config.addinivalue_line("markers", line)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, obj: object) -> None:
    """Let a test with the marker use the fixture, whether it names it or not.

    Pytest asks for every attribute of a module and class, mocks and lazy objects among them: only
    the type of an object is looked at, and what a function of Python holds.
    """
    for marker, fixture in _FIXTURES.items():
        if collector.get_closest_marker(marker) is not None:
            _use_fixture(fixture, collector.iter_markers("usefixtures"), collector.add_marker)
    function = obj.__func__ if type(obj) is types.MethodType else obj
    marks = vars(function).get("pytestmark") if type(function) is types.FunctionType else None
    if not isinstance(marks, list):
        return
    own = [mark for mark in marks if isinstance(mark, pytest.Mark)]
    for marker, fixture in _FIXTURES.items():
        if any(mark.name == marker for mark in own):
            _use_fixture(fixture, own, lambda mark: mark(function))


def _use_fixture(
    fixture: str, marks: Iterable[pytest.Mark], add: Callable[[pytest.MarkDecorator], object]
) -> None:
    if not any(mark.name == "usefixtures" and fixture in mark.args for mark in marks):
        add(pytest.mark.usefixtures(fixture))


def simulated(names: Iterable[str]) -> str | None:
    """Return the fixture among a test's that puts it on a simulated Mac; None without one."""
    return next((fixture for fixture in _FIXTURES.values() if fixture in names), None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with the marker ``mpskit_machine`` once on each of its machines."""
    if metafunc.definition.get_closest_marker(_MARKER) is not None:
        wanted = _marked(metafunc)
        ids = [_name(options["machine"]) for options in wanted]
        metafunc.parametrize(_FIXTURE, wanted, indirect=True, ids=ids)


def _marked(metafunc: pytest.Metafunc) -> list[dict[str, Any]]:
    mark = metafunc.definition.get_closest_marker(_MARKER)
    if mark is None:
        return []
    return [{**mark.kwargs, "machine": machine} for machine in mark.args or (DEFAULT_MACHINE,)]


def each_machine(metafunc: pytest.Metafunc) -> Iterator[None]:
    """Enter each machine that a test will run on in turn; once nothing if it names none."""
    fixture = simulated(metafunc.fixturenames)
    if fixture is None:
        yield
        return
    machines = _marked(metafunc) or _parametrised(metafunc) or [None]
    if fixture != _FIXTURE:
        machines = [_first_rehearsed(metafunc)]
    for given in machines:
        with usage_errors(), _on(_options(given)):
            yield


def _parametrised(metafunc: pytest.Metafunc) -> list[Any]:
    """Return the values of ``@pytest.mark.parametrize("mpskit_mac", ..., indirect=True)``."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        if mark.args and mark.args[0] in (_FIXTURE, (_FIXTURE,), [_FIXTURE]):
            values = mark.args[1] if len(mark.args) > 1 else mark.kwargs["argvalues"]
            return [pytest.param(value).values[0] for value in values]
    return []


def _first_rehearsed(metafunc: pytest.Metafunc) -> Any:
    """Return the machine that a rehearsed test sees."""
    mark = metafunc.definition.get_closest_marker("mpskit_rehearse")
    return DEFAULT_MACHINE if mark is None or not mark.args else mark.args[0]


def _name(machine: object) -> str:
    return machine if isinstance(machine, str) else str(getattr(machine, "name", None) or machine)


@pytest.fixture
def mpskit_mac(request: pytest.FixtureRequest) -> Iterator[SimulatedMac]:
    """The simulated Mac that the test runs on: m1-8gb, or the suite's ``--mpskit-machine``.

    Parametrise it indirectly with names, ``Machine`` objects or dictionaries of the arguments of
    ``mpskit.simulate``, or use the marker ``mpskit_machine``.
    """
    from mpskit.testing.plugin import skip_unless_usable

    with contextlib.ExitStack() as stack:
        with usage_errors():
            mac = stack.enter_context(_on(_options(getattr(request, "param", None))))
        skip_unless_usable(request.node)
        yield mac


def _options(given: object) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    return {} if given is None else {"machine": given}


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Fail the test with a wrong argument's own sentence, without this file's source."""
    from mpskit.errors import MpskitError

    try:
        yield
    except MpskitError as error:
        pytest.fail(str(error), pytrace=False)


@contextlib.contextmanager
def _on(options: dict[str, Any]) -> Iterator[SimulatedMac]:
    """Run the block on a machine; an active one is left for that time, unless it is the same.

    Args:
        options: arguments of ``simulate``; if empty, the active machine is used, or the default.
    """
    from mpskit.simulation import active, simulate

    outer = active()
    if outer is not None and _will_do(outer, options):
        yield outer
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(outside())
        chosen: dict[str, Any] = {"machine": DEFAULT_MACHINE, **options}
        yield stack.enter_context(simulate(**chosen))


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Leave the active machine for the time of the block, if there is one."""
    from mpskit.simulation import active

    outer = active()
    if outer is None:
        yield
        return
    outer.__exit__(None, None, None)
    try:
        yield
    finally:
        outer.__enter__()


def _will_do(mac: SimulatedMac, options: dict[str, Any]) -> bool:
    from mpskit.host import find_machine

    machine: str | Machine | None = options.get("machine")
    return not options or (
        set(options) == {"machine"} and find_machine(machine or "") == mac.machine
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that passes but breaks a limit of its markers."""
    limit = item.get_closest_marker("mpskit_max_memory")
    no_fallback = item.get_closest_marker("mpskit_no_cpu_fallback")
    with contextlib.ExitStack() as stack:
        if limit is not None:
            stack.enter_context(_limited(limit))
        if no_fallback is not None:
            stack.enter_context(_without_fallback())
        return (yield)


@contextlib.contextmanager
def _without_fallback() -> Iterator[None]:
    """Fail on a simulated Mac's fallbacks; on a real Mac, turn torch's warning into an error."""
    mac = _active()
    before = len(mac.fallbacks) if mac is not None else 0
    with warnings.catch_warnings():
        if mac is None:
            warnings.filterwarnings("error", message=_FALLBACK_WARNING, category=UserWarning)
        yield
    fallen = mac.fallbacks[before:] if mac is not None else ()
    if fallen:
        pytest.fail(f"MPS has no kernel for {', '.join(fallen)}: it ran on the CPU", pytrace=False)


@contextlib.contextmanager
def _limited(mark: pytest.Mark) -> Iterator[None]:
    """Fail if the peak of live tensors is above the limit; a backend without peaks never fails."""
    from mpskit._base.sizes import format_bytes, parse_bytes

    with usage_errors():
        limit = parse_bytes(mark.args[0] if len(mark.args) == 1 else "")
    gc.collect()
    _reset_peak()
    yield
    peak = _peak()
    if peak is not None and peak > limit:
        pytest.fail(
            f"the tensors took {format_bytes(peak)} at once, more than the {format_bytes(limit)} "
            "of mpskit_max_memory",
            pytrace=False,
        )


def _active() -> SimulatedMac | None:
    if "torch" not in sys.modules:
        return None
    from mpskit.simulation import active

    mac: SimulatedMac | None = active()
    return mac


def _reset_peak() -> None:
    mac = _active()
    if mac is not None:
        mac.reset_peaks()
    elif "torch" in sys.modules:
        from mpskit.backends.memory import backend, device_in_use

        backend(device_in_use()).reset_peak()


def _peak() -> int | None:
    mac = _active()
    if mac is not None:
        return mac.peak_allocated_bytes
    if "torch" not in sys.modules:
        return None
    from mpskit.backends.memory import backend, device_in_use

    return backend(device_in_use()).peak_bytes()
