"""The C library's calls, with a library of our own in its place."""

import pytest

from mpskit.system import heap


@pytest.fixture
def called(monkeypatch):
    calls = []

    def function(name):
        return lambda *arguments: calls.append((name, *arguments))

    monkeypatch.setattr(heap, "_function", function)
    return calls


def test_free_pages_are_given_back(called):
    heap.trim_heap()
    assert called == [("malloc_trim", 0)]


def test_large_blocks_are_given_back_inside_only(called):
    with heap.returning_large_blocks():
        assert called == [("mallopt", -3, 1 << 20)]
    # Without the second, glibc would trim at 128 KiB, and go to the system for each tensor.
    assert called[1:] == [("mallopt", -3, 32 << 20), ("mallopt", -1, 64 << 20)]


def test_another_c_library_has_neither(monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(heap, "_function", asked.append)
    heap.trim_heap()
    with heap.returning_large_blocks():
        assert "malloc_trim" in asked


def test_a_name_that_the_c_library_lacks_is_none():
    assert heap._function("mpskit_has_no_such_call") is None
