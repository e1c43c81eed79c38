"""The page follows from the results alone, and the one in docs/ is of the results beside it."""

import json
import re
from pathlib import Path

import pytest
import report
from report import Environment, Failure, Ran, Results
from results import Column, Plot, Row, Section, Table

DOCS = Path(__file__).parents[2] / "docs"
HERE = Environment(
    processor="A processor", cpus=2, memory_gib=8, system="Linux x86_64", python="3.12.1",
    versions={"torch": "2.13.0", "accelerate": "missing"}, threads=1,
)  # fmt: skip


def results(*, failed=()):
    table = Table(
        columns=(
            Column(key="who", heading="library"),
            Column(key="s", heading="time", unit="seconds", better="low"),
        ),
        rows=(
            Row(values={"who": "mpskit", "s": 2.0}, side="ours"),
            Row(values={"who": "other", "s": 1.0}, side="peer"),
            Row(values={"who": "none", "s": None}),
        ),
        plot=Plot(column="s", title="Seconds", log=True),
    )
    section = Section(
        name="first", title="The first, and only", question="How long?", command="python x.py",
        full="python x.py --size full", page="cache", tables=(table, table), notes=("A note.",),
    )  # fmt: skip
    ran = Ran(section=section, seconds=61.2, commit="abc1234", date="2026-01-02")
    return Results(environment=HERE, ran=(ran,), failed=failed)


def test_a_page_has_everything_of_its_results(tmp_path):
    report.write(results(), tmp_path)
    text = (tmp_path / "benchmarks.md").read_text("utf-8")
    assert text.startswith("<!-- written by")
    plain = " ".join(text.split())
    for part in (
        "1 section in 1.0 minutes", "abc1234 (2026-01-02)", "A processor with 2 CPUs",
        "torch 2.13.0, accelerate missing", "[The first, and only](#the-first-and-only)",
        "## The first, and only", "`python x.py --size full`", "(benchmarks/cache.md)",
        "(images/bench_first.png)", "(images/bench_first_2.png)", "| mpskit | 2 s |",
        "- mpskit, time: 2 s against 1 s of other", "A note.",
    ):  # fmt: skip
        assert part in plain, part
    for picture in re.findall(r"\((images/\S+)\)", text):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert report.page(report.read(tmp_path)) == text


def test_a_failed_section_shows_and_old_pictures_go(tmp_path):
    report.write(results(), tmp_path)
    failed = results(failed=(Failure(name="second", error="OSError: full"),))
    report.write(failed.model_copy(update={"ran": ()}), tmp_path)
    text = (tmp_path / "benchmarks.md").read_text("utf-8")
    assert "**second failed in this run**: `OSError: full`" in text
    assert list((tmp_path / "images").glob("*.png")) == []


def test_the_page_in_docs_is_of_the_results_beside_it():
    assert report.page(report.read(DOCS)) == (DOCS / "benchmarks.md").read_text("utf-8")


def test_the_results_in_docs_are_whole_and_name_nobody():
    found = report.read(DOCS)
    assert found.failed == ()
    text = (DOCS / report.RESULTS).read_text("utf-8")
    assert not re.search(r"/(home|root|Users|tmp|work)/", text)
    written = [
        table["worse"] for ran in json.loads(text)["ran"] for table in ran["section"]["tables"]
    ]
    computed = [list(table.worse) for ran in found.ran for table in ran.section.tables]
    assert written == computed
    for ran in found.ran:
        page = ran.section.page
        assert not page or (DOCS / "benchmarks" / f"{page}.md").exists(), page
        for number, table in enumerate(ran.section.tables):
            if table.plot is not None:
                assert (DOCS / "images" / report.picture_name(ran.section, number)).exists()


@pytest.mark.parametrize(
    "title", ["Start-up and the decision", "CPU or MPS", "The first, and only"]
)
def test_anchors_are_those_of_the_site(title):
    assert re.fullmatch(r"[\w-]+", report._anchor(title))
