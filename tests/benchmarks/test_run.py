"""The run goes on after a failed section, and keeps the figures of those not measured anew."""

import sys
from pathlib import Path

import pytest
import report
import run
from report import Environment, Ran, Results
from results import Column, Row, Section, Size, Table

GOOD = """
from results import Column, Row, Section, Table, script

def section(size):
    table = Table(columns=(Column(key="who", heading="who"),), rows=(Row(values={"who": size}),))
    return Section(name=NAME, title=NAME, question="?", command="c", tables=(table,))

script(section)
"""


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A folder of three scripts, of which the second fails."""
    monkeypatch.setenv("PYTHONPATH", str(Path(run.__file__).parent))
    for name in ("one", "three"):
        (tmp_path / f"{name}.py").write_text(f"NAME = {name!r}\n{GOOD}")
    (tmp_path / "two.py").write_text("raise SystemExit(f'no {__file__}')")
    monkeypatch.setattr(run, "SECTIONS", {n: f"{n}.py" for n in ("one", "two", "three")})
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "--size", "tiny", "--out", str(tmp_path / "out")])
    return tmp_path


def test_a_failed_section_does_not_end_the_run(scripts, capfd):
    assert run.main() == 1
    found = report.read(scripts / "out")
    assert [ran.section.name for ran in found.ran] == ["one", "three"]
    assert found.ran[0].section.tables[0].rows[0].values == {"who": "tiny"}
    (failure,) = found.failed
    assert failure.name == "two"
    assert failure.error.startswith("no ...")
    assert str(scripts.parent) not in failure.error
    assert "[3/3] three" in capfd.readouterr().err


def test_only_one_section_keeps_the_others(scripts, monkeypatch):
    run.main()
    (scripts / "two.py").write_text(f"NAME = 'two'\n{GOOD}")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", "two"])
    assert run.main() == 0
    found = report.read(scripts / "out")
    assert [ran.section.name for ran in found.ran] == ["one", "two", "three"]
    assert found.failed == ()


def test_figures_of_another_machine_are_not_kept(tmp_path):
    here = run.environment()
    table = Table(columns=(Column(key="who", heading="who"),), rows=(Row(values={"who": "x"}),))
    section = Section(name="startup", title="S", question="?", command="c", tables=(table,))
    ran = Ran(section=section, seconds=1, commit="abc", date="2026-01-02")
    other = Environment(**here.model_dump() | {"processor": "another"})
    report.write(Results(environment=other, ran=(ran,)), tmp_path)
    new = Results(environment=here)
    assert run.merged(new, tmp_path) == new


def test_sections_are_scripts_and_sizes_choose(monkeypatch):
    folder = Path(run.__file__).parent
    assert all((folder / file).exists() for file in run.SECTIONS.values())
    assert [size.of(1, 2, 3) for size in Size] == [1, 2, 3]
