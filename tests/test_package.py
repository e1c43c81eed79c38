"""What is published: the wheel's content, its metadata, and the files that people look for."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
_DATA = {".csv", ".json", ".toml", ".typed"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel as the build backend makes it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as file:
        yield file


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    inside = {name for name in wheel.namelist() if not name.startswith("mpskit-")}
    on_disk = {
        path.relative_to(SRC).as_posix()
        for path in (SRC / "mpskit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == on_disk
    assert "mpskit/py.typed" in inside
    assert {Path(name).suffix for name in inside} <= {".py", *_DATA}
    for name in inside:
        data = Path(name).suffix in _DATA - {".typed"}
        assert data == name.startswith("mpskit/data/"), name


def test_the_metadata_says_what_the_project_says(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = message_from_bytes(wheel.read(name))
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    bare = {re.match(r"[\w-]+", line)[0] for line in required}
    assert bare == {"torch", "psutil", "packaging", "pydantic"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_the_citation_has_the_version():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.search(r"^version: (.+)$", text, re.MULTILINE)[1] == PROJECT["version"]
    assert re.search(r"^license: (.+)$", text, re.MULTILINE)[1] == PROJECT["license"]


def test_both_readmes_have_the_same_commands_links_and_examples():
    english, chinese = (
        (ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md")
    )
    for pattern in (
        r"`(mpskit [^`]+)`",
        r"`(\w+\([^`]*\))`",
        r"\]\(([^)]+)\)",
        r"^#+ ",
        r"^>>> [^#\n]+",
    ):
        found = [
            sorted({name.strip() for name in re.findall(pattern, text, re.MULTILINE)} - _OTHER)
            for text in (english, chinese)
        ]
        assert found[0] == found[1], pattern


_OTHER = {"README.md", "README.zh-CN.md"}  # each links to the other


@pytest.mark.full  # draws every picture of the pages, a minute of work
def test_the_pictures_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    script = ROOT / "scripts" / "pictures.py"
    subprocess.run((sys.executable, str(script), str(tmp_path)), check=True, timeout=280)
    committed = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == committed
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 150_000
