"""What is kept of measured times, and what may go wrong with the file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mpskit import simulate
from mpskit.speed.evidence import (
    Evidence,
    all_evidence,
    clear_evidence,
    find_evidence,
    keep_evidence,
)
from mpskit.speed.workload import Workload

WORK = Workload(flops=1e9, bytes_moved=1e8, dtype="float32")
TIMES = {"cpu": 0.02, "mps": 0.01}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MPSKIT_NO_CACHE", raising=False)
    monkeypatch.setenv("MPSKIT_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_what_is_kept_is_found_for_the_same_counts_and_torch():
    assert find_evidence(WORK, "2.13.0") is None
    assert keep_evidence(WORK, TIMES, "2.13.0")
    assert find_evidence(WORK, "2.13.0").seconds == TIMES
    assert find_evidence(WORK, "2.14.0") is None
    nearly = WORK.model_copy(update={"flops": 1e9 + 100})
    assert find_evidence(nearly, "2.13.0").seconds == TIMES


@pytest.mark.parametrize(
    "change", [{"flops": 1.1e9}, {"bytes_moved": 2e8}, {"dtype": "bfloat16"}, {"flops": None}]
)
def test_another_workload_is_not_found(change):
    keep_evidence(WORK, TIMES, "2.13.0")
    assert find_evidence(WORK.model_copy(update=change), "2.13.0") is None


def test_a_newer_time_replaces_the_older_one():
    keep_evidence(WORK, TIMES, "2.13.0")
    keep_evidence(WORK, {"cpu": 0.5, "mps": 0.25}, "2.13.0")
    assert [entry.seconds["cpu"] for entry in all_evidence()] == [0.5]


def test_clearing_removes_all_of_it(folder):
    keep_evidence(WORK, TIMES, "2.13.0")
    keep_evidence(WORK, TIMES, "2.14.0")
    (folder / "mps-probe-other.json").write_text("{}")
    assert clear_evidence() == 2
    assert all_evidence() == []
    assert [path.name for path in folder.iterdir()] == ["mps-probe-other.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", '{"flops": 1}', "[" * 100_000, '[{"flops": "much"}]', "\x00", "[null]"],
)
def test_a_broken_file_is_as_good_as_none(folder, text):
    keep_evidence(WORK, TIMES, "2.13.0")
    path = next(folder.iterdir())
    path.write_text(text)
    assert find_evidence(WORK, "2.13.0") is None
    assert keep_evidence(WORK, TIMES, "2.13.0")
    assert find_evidence(WORK, "2.13.0").seconds == TIMES


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": {}},
        {"seconds": {"cpu": 0}},
        {"seconds": {"cpu": -1.0}},
        {"flops": math.inf, "bytes_moved": math.inf},
        {"flops": math.nan},
        {"bytes_moved": math.inf},
    ],
)
def test_figures_that_nothing_has_are_not_believed(folder, wrong):
    keep_evidence(WORK, TIMES, "2.13.0")
    path = next(folder.iterdir())
    entry = json.loads(path.read_text())[0] | wrong
    path.write_text(json.dumps([entry]))
    assert all_evidence() == []


def test_a_folder_that_cannot_be_written_keeps_nothing(folder, monkeypatch):
    monkeypatch.setenv("MPSKIT_CACHE_DIR", str(folder / "file" / "below"))
    (folder / "file").write_text("")
    assert not keep_evidence(WORK, TIMES, "2.13.0")
    assert find_evidence(WORK, "2.13.0") is None
    assert clear_evidence() == 0


def test_no_cache_neither_reads_nor_writes(folder, monkeypatch):
    keep_evidence(WORK, TIMES, "2.13.0")
    monkeypatch.setenv("MPSKIT_NO_CACHE", "1")
    assert find_evidence(WORK, "2.13.0") is None
    assert not keep_evidence(WORK, TIMES, "2.14.0")
    assert len(list(folder.iterdir())) == 1


def test_a_simulated_machines_times_are_neither_kept_nor_used(folder):
    with simulate("m1-8gb"):
        assert not keep_evidence(WORK, TIMES, "2.13.0")
        assert find_evidence(WORK, "2.13.0") is None
    assert list(folder.iterdir()) == []


def test_the_file_stays_small():
    for number in range(250):
        keep_evidence(Workload(flops=2.0**number, bytes_moved=1.0), TIMES, "2.13.0")
    assert len(all_evidence()) == 200
    assert find_evidence(Workload(flops=2.0**249, bytes_moved=1.0), "2.13.0") is not None


def test_it_is_written_for_people_too():
    entry = Evidence(
        flops=1e9, bytes_moved=1e8, dtype="float32", seconds=TIMES, torch_version="2.13.0"
    )
    assert "cpu 20 ms, mps 10 ms" in str(entry)
