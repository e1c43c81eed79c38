"""What was worse than a peer, found from the rows, and how tables show figures."""

import pytest
from results import Column, Row, Section, Table, format_value, table_parts

SECONDS = Column(key="s", heading="time", unit="seconds", better="low", margin=0.1)
NAME = Column(key="who", heading="library")


def table(*rows, column=SECONDS, **more):
    made = [Row(values={"who": who, "s": value, **more}, side=side) for side, who, value in rows]
    return Table(columns=(NAME, column), rows=tuple(made))


@pytest.mark.parametrize(
    ("better", "ours", "theirs", "worse"),
    [
        ("low", 2.0, 1.0, True),
        ("low", 1.0, 2.0, False),
        ("low", 1.09, 1.0, False),  # within the margin
        ("low", 1.11, 1.0, True),
        ("high", 1.0, 2.0, True),
        ("high", 2.0, 1.0, False),
        ("near zero", -0.5, 0.2, True),
        ("near zero", -0.1, 0.2, False),
        ("low", None, 1.0, True),  # it could not do what a peer could
        ("low", 1.0, None, False),
        ("low", None, None, False),
        (None, 2.0, 1.0, False),
        ("near zero", -1.001, 1.0, False),  # the table shows the same
    ],
)
def test_worse_is_found_by_comparing(better, ours, theirs, worse):
    column = SECONDS.model_copy(update={"better": better})
    found = table(("ours", "mpskit", ours), ("peer", "other", theirs), column=column).worse
    assert bool(found) is worse


def test_the_best_peer_is_named_and_the_others_counted():
    rows = [("ours", "mpskit", 3.0), ("peer", "slow", 9.0), ("peer", "b", 2.0), ("peer", "a", 0.5)]
    assert table(*rows, (None, "bound", 0.1)).worse == [
        "mpskit, time: 3 s against 500 ms of a (and 1 more)"
    ]


def test_only_rows_of_one_case_are_compared():
    rows = [
        Row(values={"case": case, "who": who, "s": value}, side=side)
        for case, who, value, side in [
            ("easy", "mpskit", 1.0, "ours"),
            ("easy", "other", 2.0, "peer"),
            ("hard", "mpskit", 5.0, "ours"),
            ("hard", "other", 4.0, "peer"),
        ]
    ]
    columns = (Column(key="case", heading="job"), NAME, SECONDS)
    found = Table(columns=columns, rows=tuple(rows), case="case")
    assert found.worse == ["hard: mpskit, time: 5 s against 4 s of other"]
    text = "\n".join(table_parts(found.model_copy(update={"pivot": "s"})))
    assert "| job (time) | mpskit | other |" in text
    assert "| hard | 5 s | 4 s |" in text


def test_each_table_says_what_was_worse():
    one = ("ours", "mpskit", 1.0)
    assert list(table_parts(table(one)))[-1].endswith("there is no peer in this table.")
    assert list(table_parts(table(one, ("peer", "b", 2.0))))[-1].endswith("nothing.")
    assert "- mpskit, time: 1 s" in list(table_parts(table(one, ("peer", "b", 0.5))))[-1]


def test_what_is_computed_is_written_and_not_read_back():
    made = table(("ours", "mpskit", 2.0), ("peer", "other", 1.0))
    section = Section(name="n", title="T", question="Q?", command="c", tables=(made,))
    text = section.model_dump_json()
    assert "against 1 s of other" in text
    assert Section.model_validate_json(text.replace("against", "edited")) == section


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        ("seconds", 0.0000012, "1.2 us"),
        ("seconds", 1234.0, "1234 s"),
        ("seconds", 5e-9, "5 ns"),
        ("seconds", 0.0, "0 ns"),
        ("bytes", 3 * 2**20, "3 MiB"),
        ("bytes", 100, "100 B"),
        ("percent", 0.125, "12.5%"),
        ("percent", 0.00028, "0.028%"),
        ("percent", 1.0, "100%"),
        ("ratio", 1.0666, "1.07"),
        ("count", 12345, "12,345"),
        ("count", None, "-"),
    ],
)
def test_figures_are_readable(unit, value, shown):
    assert format_value(Column(key="x", heading="x", unit=unit), value) == shown
