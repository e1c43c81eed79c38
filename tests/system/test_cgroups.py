"""Control groups: which folders count, and what memory their files still allow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
