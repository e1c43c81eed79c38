"""The working-set rule against public reports of real Macs (tests/data/mac_gpu_budget.csv)."""

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit._base.sizes import GIB, MIB
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.host import Host, Readings, find_machine
from mpskit.memory import WorkingSet, memory_budget_for, recommended_bytes
from mpskit.memory.working_set import default_limits, limit_bytes, rule_of

REPORTS = Path(__file__).parents[1] / "data" / "mac_gpu_budget.csv"
PRINTED = re.compile(r"\[as printed: ([\d.]+) (B|MiB|MB|GiB-based|GiB|GB)\b")
UNITS = {"B": 1, "MiB": MIB, "MB": 10**6, "GiB-based": GIB, "GiB": GIB, "GB": 10**9}


def reports():
    with REPORTS.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if "Radeon" not in row["chip"]]


def eras(row):
    """The macOS versions a report can be of: its own, or either rule's where it does not say."""
    return [row["macos_version"]] if row["macos_version"] else ["15.6", "26"]


def within_precision(size, row):
    """Whether a size prints as the report does: rounded, or cut off, at its last digit."""
    text, unit = PRINTED.search(row["notes"]).groups()
    step = UNITS[unit] / 10 ** len(text.partition(".")[2])
    printed = float(text) * UNITS[unit]
    return printed - step * 0.51 <= size < printed + step * 1.01


def reported(found, row):
    limit = row["metric"] == "mps_max_allowed_gib"
    return found.limit_bytes if limit else found.recommended_bytes


@pytest.mark.parametrize(
    "row", reports(), ids=lambda row: f"{row['source_ref'][:30]}-{row['ram_gib']}"
)
def test_every_report_is_met_within_its_printed_precision(row):
    ram = int(row["ram_gib"]) * GIB
    found = [reported(recommended_bytes(ram, macos), row) for macos in eras(row)]
    assert any(within_precision(size, row) for size in found), found


def test_the_reports_in_bytes_are_met_to_the_byte():
    exact = [row for row in reports() if PRINTED.search(row["notes"])[2] == "B"]
    assert len(exact) >= 20
    for row in exact:
        ram = int(row["ram_gib"]) * GIB
        found = {recommended_bytes(ram, macos).recommended_bytes for macos in eras(row)}
        assert int(row["value"]) in found, row


def test_the_largest_buffer_is_met_to_the_byte():
    reported = [
        (row, int(match[1]))
        for row in reports()
        if (match := re.search(r"max_?buffer_?(?:length|bytes)[= ]+(\d{9,})", row["notes"], re.I))
    ]
    assert len(reported) >= 6
    for row, size in reported:
        ram = int(row["ram_gib"]) * GIB
        assert size in {recommended_bytes(ram, macos).max_buffer_bytes for macos in eras(row)}, row


# Worked out by hand from the rule: ceil(RAM / 16384 x float32(f)) x 16384, or RAM - min(RAM/4, 48 GiB).
CASES = [
    (8, "15.6", 5726633984, "high"),
    (8, "26", 5726633984, "high"),
    (16, "15.6", 11453251584, "high"),
    (16, "26", 12713115648, "high"),
    (16, "26.5.1", 12713115648, "high"),
    (24, "15", 17179885568, "medium"),
    (24, "26", 19069665280, "high"),
    (36, "15.6", 27 * GIB, "medium"),
    (36, "26", 30150672384, "high"),
    (64, "14", 48 * GIB, "high"),
    (128, "13.0", 96 * GIB, "high"),
    (192, "15.6", 144 * GIB, "medium"),
    (256, "15.6", 208 * GIB, "high"),
    (512, "15.6", 464 * GIB, "medium"),
    (512, "26", 464 * GIB, "low"),
    (256, "26", 239143780352, "low"),
    (16, "27.1", 12713115648, "low"),
    (16, "12.6", 11453251584, "low"),
    (16, "10.16", 11453251584, "low"),
    # macOS 26 as programs that were built before it see it.
    (16, "16.0", 12713115648, "high"),
]


@pytest.mark.parametrize(("gib", "macos", "size", "confidence"), CASES)
def test_the_rule(gib, macos, size, confidence):
    found = recommended_bytes(gib * GIB, macos)
    assert (found.recommended_bytes, found.confidence) == (size, confidence)
    assert found.limit_bytes == int(1.7 * size)
    assert found.max_buffer_bytes == size * 3 // 4 // 16384 * 16384


def test_the_off_device_budget_has_the_same_bytes():
    budget = memory_budget_for(16 * GIB, "15.6", "M1")
    assert (budget.recommended_bytes, budget.limit_bytes) == (11453251584, 19470527692)
    assert (budget.device, budget.recommended_source, budget.confidence) == ("mps", "table", "high")


def test_a_wired_limit_replaces_the_working_set_but_not_the_largest_buffer():
    stock, set_ = recommended_bytes(128 * GIB, "26"), 112 * GIB
    found = recommended_bytes(128 * GIB, "26", wired_limit_bytes=set_)
    assert found.recommended_bytes == set_
    assert found.limit_bytes == limit_bytes(set_)
    assert found.max_buffer_bytes == stock.max_buffer_bytes
    assert recommended_bytes(128 * GIB, "26", wired_limit_bytes=0) == stock
    assert "macOS" in stock.source
    assert "iogpu.wired_limit_mb" in found.source


@pytest.mark.parametrize(("wired", "confidence"), [(400 * GIB, "high"), (0, "low"), (None, "low")])
def test_what_the_user_set_is_sure_whatever_the_rule_is(wired, confidence):
    found = recommended_bytes(512 * GIB, "26", wired_limit_bytes=wired)
    assert found.confidence == confidence


@pytest.mark.parametrize("gib", [4, 8, 16, 32])
def test_a_cards_limit_is_one_of_torchs_own(gib):
    card = recommended_bytes(32 * GIB, "14.5", vram_bytes=gib * GIB).limit_bytes
    assert card in default_limits()


@pytest.mark.parametrize("gib", [7, 8, 14, 16, 64])
@pytest.mark.parametrize("macos", ["13", "15.6", "26"])
def test_so_is_that_of_every_size_of_mac(gib, macos):
    assert recommended_bytes(gib * GIB, macos).limit_bytes in default_limits()


@pytest.mark.parametrize("gib", [8, 16, 32])
def test_a_discrete_gpu_counts_by_its_own_memory(gib):
    found = recommended_bytes(32 * GIB, "14.5", vram_bytes=gib * GIB)
    assert found.recommended_bytes == gib * GIB - 16 * MIB
    assert found.max_buffer_bytes is None


def test_the_one_small_card_that_was_reported_has_all_of_its_memory():
    # Fooocus#1152: 6.80 GB = 1.7 x 4.00 GiB on a Radeon Pro 560X.
    found = recommended_bytes(32 * GIB, "14.0", vram_bytes=4 * GIB)
    assert round(found.limit_bytes / GIB, 2) == 6.8
    assert found.confidence == "low"


def test_the_rule_of_a_host():
    mac = Host.from_readings(find_machine("m1-8gb").readings())
    found = rule_of(mac)
    assert found is not None
    assert found.recommended_bytes == 5726633984
    assert rule_of(Host.from_readings(find_machine("intel-mac-amd-32gb").readings())) is None
    assert rule_of(Host.from_readings(Readings(system="Linux", memory_total=8 * GIB))) is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0, "15.6"), ArgumentError),
        ((-GIB, "15.6"), ArgumentError),
        ((8 * GIB, "fifteen"), ArgumentError),
        ((8 * GIB, ""), ArgumentError),
        ((8 * GIB, "15.6\n26"), ArgumentError),
        ((8 * GIB, "-26"), ArgumentError),
        ((8.0, "15.6"), ArgumentTypeError),
        ((True, "15.6"), ArgumentTypeError),
        (("8GiB", "15.6"), ArgumentTypeError),
        ((8 * GIB, 26), ArgumentTypeError),
        ((8 * GIB, None), ArgumentTypeError),
    ],
)
def test_bad_input_is_a_typed_error_with_the_input(arguments, error):
    with pytest.raises(error) as caught:
        recommended_bytes(*arguments)
    assert caught.value.given in arguments


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("wired_limit_bytes", -5, ArgumentError),
        ("wired_limit_bytes", 1e9, ArgumentTypeError),
        ("wired_limit_bytes", "60GiB", ArgumentTypeError),
        ("vram_bytes", 0, ArgumentError),
        ("vram_bytes", "8GiB", ArgumentTypeError),
        ("chip", 3, ArgumentTypeError),
    ],
)
def test_bad_details_are_typed_errors_too(argument, value, error):
    with pytest.raises(error) as caught:
        memory_budget_for(16 * GIB, **{argument: value})
    assert caught.value.given == value


@given(
    ram=st.integers(2**20, 2**42),
    major=st.integers(0, 999),
    minor=st.none() | st.integers(0, 99),
)
def test_whatever_the_machine_there_is_an_answer(ram, major, minor):
    macos = str(major) if minor is None else f"{major}.{minor}"
    found = recommended_bytes(ram, macos)
    assert isinstance(found, WorkingSet)
    assert 0 < found.recommended_bytes <= ram + 16384
    assert found.max_buffer_bytes <= found.recommended_bytes <= found.limit_bytes
    known = 13 <= (26 if major == 16 else major) <= 26
    assert known or found.confidence == "low"


@given(
    ram=st.integers(GIB, 600 * GIB),
    more=st.integers(0, 600 * GIB),
    macos=st.sampled_from(["15", "26"]),
)
def test_more_memory_never_has_a_smaller_working_set(ram, more, macos):
    small, large = recommended_bytes(ram, macos), recommended_bytes(ram + more, macos)
    assert large.recommended_bytes >= small.recommended_bytes
