"""Control groups: which folders count, and what memory their files still allow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.system import cgroups
from mpskit.system.cgroups import count, folders_of, memory_room

V1, V2 = "memory.limit_in_bytes", "memory.max"


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({}, None),
        ({"memory.max": "1000", "memory.current": "400"}, 600),
        ({"memory.max": "1000\n", "memory.current": "1400\n"}, 0),
        ({"memory.max": "max", "memory.current": "400"}, None),
        ({"memory.max": "1000"}, None),
        ({"memory.current": "400"}, None),
        (
            {
                "memory.max": "1000",
                "memory.current": "400",
                "memory.stat": "anon 1\ninactive_file 100\n",
            },
            700,
        ),
        # More droppable than used cannot be: only what is used comes back.
        ({"memory.max": "1000", "memory.current": "400", "memory.stat": "inactive_file 900"}, 1000),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "100",
                "memory/memory.stat": "total_inactive_file 50",
            },
            950,
        ),
        ({"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "1"}, None),
        # A child's group and its parent's: the tighter one counts.
        (
            {
                "a/b/memory.max": "1000",
                "a/b/memory.current": "100",
                "a/memory.max": "600",
                "a/memory.current": "100",
            },
            500,
        ),
        ({"memory.max": "nonsense", "memory.current": "\x00"}, None),
        ({"memory.max": "²", "memory.current": "1"}, None),
    ],
)
def test_what_a_container_still_allows(files, room):
    assert memory_room(files) == room


@given(
    st.dictionaries(
        st.sampled_from([V1, V2, "memory.current", "memory.stat"]) | st.text(), st.text()
    )
)
def test_no_file_makes_it_raise(files):
    room = memory_room(files)
    assert room is None or room >= 0


def test_folders_of_the_groups():
    membership = "9:name=systemd:/x\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/user.slice/../me\nbad"
    assert folders_of(membership) == [
        "memory/a/b",
        "memory/a",
        "memory",
        "cpu,cpuacct",
        "user.slice/me",
        "user.slice",
        "",
    ]


@pytest.mark.parametrize(
    ("text", "number"), [("12\n", 12), ("max", None), ("-1", None), ("²", None), ("9" * 20, None)]
)
def test_numbers_in_group_files(text, number):
    assert count(text) == number


def test_the_files_of_the_groups_that_have_a_limit(tmp_path, monkeypatch):
    for path, text in {
        "own": "0::/job/free\n",
        "job/free/memory.max": "max\n",
        "job/free/memory.current": "10\n",
        "job/cpu.max": "150000 100000\n",
        "job/memory.max": "1000\n",
        "job/memory.current": "400\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "_MEMBERSHIP", tmp_path / "own")
    monkeypatch.setattr(cgroups.sys, "platform", "linux")
    cgroups._limiting.cache_clear()
    try:
        assert cgroups.read_limits() == {
            "job/free/memory.max": "max",
            "job/cpu.max": "150000 100000",
            "job/memory.max": "1000",
        }
        assert cgroups.memory_files() == {"job/memory.max": "1000", "job/memory.current": "400"}
        monkeypatch.setattr(cgroups.sys, "platform", "darwin")
        assert cgroups.read_limits() == {}
    finally:
        cgroups._limiting.cache_clear()
