"""Changes of other people's objects: by thread, for the process, and always taken back."""

import linecache
import sys
import threading
import types

import pytest

from interrupting import interrupted_at_each_line
from mpskit.dispatch import patches as module
from mpskit.dispatch.patches import Patches, in_place
from mpskit.errors import SimulationError


@pytest.fixture
def owner():
    class Base:
        @staticmethod
        def static(x):
            return ("static", x)

        def method(self, x):
            return ("method", x)

    class Owner(Base):
        own = "own"

    return Owner


def elsewhere(call):
    """Return what a call returns on another thread."""
    result = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    thread.join()
    return result[0]


def test_what_was_there_comes_back_and_what_was_not_goes(owner):
    with Patches() as patches:
        patches.set(owner, "own", 1)
        patches.set(owner, "own", 2)
        patches.set(owner, "method", 3)
        patches.item(mapping := {"a": 1}, "a", 2)
        patches.item(mapping, "b", 2)
        assert (owner.own, owner.method, mapping) == (2, 3, {"a": 2, "b": 2})
    assert owner.own == "own"
    assert set(vars(owner)) & {"own", "method"} == {"own"}
    assert mapping == {"a": 1}


def test_two_holders_may_leave_in_any_order(owner):
    first, second = Patches(), Patches()
    first.set(owner, "own", 1)
    second.set(owner, "own", 2)
    first.undo()
    assert owner.own == 2
    second.undo()
    assert owner.own == "own"


def test_a_function_is_replaced_for_one_thread(owner):
    with Patches() as patches:
        patches.bind(owner, "method", lambda call: lambda self, x: ("mine", call(self, x)))
        patches.bind(owner, "method", lambda call: lambda self, x: ("inner", call(self, x)))
        patches.bind(owner, "static", in_place(lambda x: ("mine", x)))
        assert owner().method(1) == ("inner", ("mine", ("method", 1)))
        assert owner.static(2) == owner().static(2) == ("mine", 2)
        assert elsewhere(lambda: owner().method(1)) == ("method", 1)
        assert elsewhere(lambda: owner().static(2)) == ("static", 2)
    assert not set(vars(owner)) & {"method", "static"}


def test_threads_come_and_go_in_any_order(owner):
    started, ended = threading.Event(), threading.Event()

    def first():
        with Patches() as patches:
            patches.bind(owner, "method", in_place(lambda self, x: "first"))
            started.set()
            ended.wait()
            return owner().method(1)

    seen = []
    thread = threading.Thread(target=lambda: seen.append(first()))
    thread.start()
    started.wait()
    with Patches() as patches:
        patches.bind(owner, "method", in_place(lambda self, x: "second"))
        assert owner().method(1) == "second"
    assert owner().method(1) == ("method", 1)
    ended.set()
    thread.join()
    assert seen == ["first"]
    assert "method" not in vars(owner)


def test_a_change_for_all_below_a_thread_s_own_is_refused_by_name(owner):
    with Patches() as patches:
        patches.bind(owner, "method", in_place(lambda self, x: "mine"))
        with Patches() as other, pytest.raises(SimulationError, match="MainThread"):
            other.set(owner, "method", 1)
        assert owner().method(1) == "mine"


def test_a_change_for_all_may_end_below_a_thread_s_own(owner):
    below, above = Patches(), Patches()
    below.set(owner, "method", lambda self, x: ("simulated", x))
    above.bind(owner, "method", lambda call: lambda self, x: ("mine", call(self, x)))
    assert owner().method(1) == ("mine", ("simulated", 1))
    below.undo()
    assert owner().method(1) == ("mine", ("method", 1))
    above.undo()
    assert "method" not in vars(owner)


def test_the_first_makes_a_shared_change_and_the_last_undoes_it():
    done = []

    def change(patches):
        done.append("made")
        patches.on_exit(lambda: done.append("undone"))

    first, second = Patches(), Patches()
    first.share(change)
    second.share(change)
    first.undo()
    assert done == ["made"]
    second.undo()
    assert done == ["made", "undone"]
    with Patches() as patches:
        patches.share(change)
    assert done == ["made", "undone"] * 2


def test_every_step_of_undoing_runs_and_the_first_error_is_raised():
    done = []
    patches = Patches()
    patches.on_exit(lambda: done.append(1))
    patches.on_exit(lambda: 1 / 0)
    patches.on_exit(lambda: done.append(2))
    with pytest.raises(ZeroDivisionError):
        patches.undo()
    assert done == [2, 1]
    patches.undo()
    assert done == [2, 1]


def interrupted(body, file, number):
    """Run with a KeyboardInterrupt at the n-th line of a file; return whether it came.

    Not at a ``with``: a trace function is called there on the way out too, before ``__exit__``,
    where Python itself never raises one.
    """
    left = [number]

    def trace(frame, event, _):
        if frame.f_code.co_filename != file:
            return None
        line = linecache.getline(file, frame.f_lineno)
        if event == "line" and not line.lstrip().startswith("with "):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        body()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_at_any_line_leaves_nothing_changed():
    place = types.SimpleNamespace(number=0)

    class Owner:
        own = "own"

        def method(self):
            return "method"

    def shared(patches):
        patches.on_exit(lambda: setattr(place, "number", 0))
        place.number = 1

    def change(patches):
        patches.set(Owner, "own", 1)
        patches.bind(Owner, "method", in_place(lambda self: "mine"))
        patches.share(shared)

    lines = 0
    while interrupted(lambda: Patches.around(change), module.__file__, lines + 1):
        lines += 1
        assert (Owner.own, Owner().method(), place.number) == ("own", "method", 0), lines
        with Patches() as other:
            other.set(Owner, "method", None)  # nothing is left bound
            other.share(shared)
            assert place.number == 1
        assert elsewhere(
            lambda: module._LOCK.acquire(blocking=False) and not module._LOCK.release()
        )
    assert lines > 50


def test_an_interrupt_anywhere_leaves_the_lock_free():
    """Also on the way out of a block, where a lock that a ``with`` holds would stay held."""

    class Owner:
        def method(self):
            return "method"

    def change(patches):
        patches.bind(Owner, "method", in_place(lambda self: "mine"))

    places = 0
    for place in interrupted_at_each_line(lambda: Patches.around(change)):
        places += 1
        free = elsewhere(
            lambda: module._LOCK.acquire(blocking=False) and not module._LOCK.release()
        )
        assert free, place
    assert places > 40
