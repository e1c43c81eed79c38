"""``mpskit compare`` and ``mpskit evidence``: the commands on a simulated Mac, and bad words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpskit import simulate
from mpskit.cli.main import main
from mpskit.speed.evidence import keep_evidence
from mpskit.speed.workload import Workload

EXAMPLES = Path(__file__).parents[2] / "examples" / "steps.py"
STEP = """
import torch
def make_step(device):
    x = torch.ones(8, 8, device=device)
    def step():
        (x @ x).sum().item()
    return step
def broken(device):
    raise RuntimeError("this step is broken")
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(STEP)
    return path


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return json.loads(capsys.readouterr().out)


def test_both_devices_and_why(file, tmp_path, capsys):
    picture = tmp_path / "times.png"
    words = ["compare", f"{file}:make_step", "--seconds", "0.01", "--why"]
    with simulate("m1-8gb"):
        code = main([*words, "--plot", str(picture)])
        text = capsys.readouterr().out
        assert main([*words, "--json"]) in (0, 1)
    assert code == ("no clear winner" in text)
    assert "mine.py:6: a value is read" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    document = told(capsys)
    assert {timing["device"] for timing in document["timings"]} == {"cpu", "mps"}
    assert document["diagnosis"]["basis"] == "predicted"
    assert any(cause["kind"] == "host-waits" for cause in document["diagnosis"]["causes"])


def test_without_a_gpu_it_times_the_cpu(file, capsys):
    assert main(["compare", f"{file}:make_step", "--seconds", "0.01", "--json"]) == 0
    document = told(capsys)
    assert (document["winner"], document["diagnosis"]) == ("cpu", None)


# These train for seconds; the other two are compared in every run.
LONG = ("resnet", "transformer", "make_step")


@pytest.mark.parametrize(
    "name",
    ["mlp", "lstm", *(pytest.param(name, marks=pytest.mark.full) for name in LONG)],
)
def test_every_example_runs(name, capsys):
    words = ["compare", f"{EXAMPLES}:{name}", "--seconds", "0.001", "--json"]
    with simulate("m2-16gb"):
        assert main(words) in (0, 1)
    assert len(told(capsys)["timings"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.py:make_step"], "existing file"),
        (["make_step"], "FILE.py:NAME"),
        (["{file}:other"], "has no 'other'"),
        (["{file}:number"], "make_step must be a function"),
        (["{file}:make_step", "--devices", "gpu"], "is not a device"),
        (["{file}:make_step", "--devices", "cuda"], "this machine has no cuda"),
        (["{file}:make_step", "--seconds", "0"], "--seconds is above 0"),
        (["{file}:make_step", "--plot", "/nowhere/x.png"], "no folder"),
    ],
)
def test_bad_words_are_told(file, words, said, capsys):
    assert main(["compare", *(word.format(file=file) for word in words)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_what_is_remembered_is_listed_and_forgotten(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MPSKIT_NO_CACHE", raising=False)
    monkeypatch.setenv("MPSKIT_CACHE_DIR", str(tmp_path))
    assert main(["evidence"]) == 0
    assert "nothing is remembered" in capsys.readouterr().out
    keep_evidence(Workload(flops=1e9, bytes_moved=1e8), {"cpu": 2.0, "mps": 1.0}, "2.13.0")
    probe = {"failure": None, "waited": 0.0}
    (tmp_path / "mps-probe-0123.json").write_text(json.dumps(probe))
    assert main(["evidence", "list"]) == 0
    text = capsys.readouterr().out
    assert "mps 1000 ms" in text
    assert "MPS in a virtual machine: works" in text
    assert main(["evidence", "list", "--json"]) == 0
    document = told(capsys)
    assert (len(document["times"]), len(document["probes"])) == (1, 1)
    assert main(["evidence", "clear", "--json"]) == 0
    assert told(capsys)["removed"] == 2
    assert list(tmp_path.iterdir()) == []
