"""``mpskit check``: exit codes, the JSON twin, and what is refused before any work."""

import json

import pytest
import torch

import planting
from mpskit import simulate
from mpskit.cli.main import main

pytestmark = pytest.mark.needs_torch("simulation")

MODEL = "import torch\ndef make():\n    return torch.nn.Linear(8, 4)\ndef step(model, batch):\n    return model(batch).sum()\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own_model.py"
    path.write_text(MODEL)
    return str(path)


def run(capsys, *words):
    with torch.random.fork_rng(devices=[]), simulate("m1-16gb", rng="separate"):
        code = main(["check", *words])
    return code, capsys.readouterr()


def test_a_right_model(capsys, file):
    code, said = run(capsys, f"{file}:make", "--batch", "float32[2,8]")
    assert code == 0
    assert "mps agrees with cpu" in said.out


def test_a_wrong_operator(capsys, file, monkeypatch, tmp_path):
    planting.plant(monkeypatch, addmm=planting.addmm_without_bias)
    words = f"{file}:make", "--batch", "float32[2,8]", "--step", "step"
    code, said = run(capsys, *words)
    assert code == 1
    assert "aten.addmm.default" in said.out
    assert "--script PATH" in said.out
    script = tmp_path / "shown.py"
    code, said = run(capsys, *words, "--script", str(script), "--json")
    found = json.loads(said.out)
    assert (code, found["command"], found["found"]) == (1, "check", True)
    assert found["operator"]["name"] == "aten.addmm.default"
    assert found["operator"]["operands"][1]["shape"] == [2, 8]
    compile(script.read_text(), str(script), "exec")


def test_known_bugs(capsys):
    code, said = run(capsys, "--only", "item-assignment")
    assert code == 0
    assert "0 affected, 1 not affected" in said.out
    code, said = run(capsys, "--only", "item-assignment", "--json")
    assert json.loads(said.out)["checks"][0]["outcome"] == "not affected"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nothing.py:make", "--batch", "float32[2,8]"], "existing file"),
        (["make", "--batch", "float32[2,8]"], "FILE.py:NAME"),
        (["FILE:make"], "--batch"),
        (["FILE:nothing", "--batch", "float32[2,8]"], "no 'nothing'"),
        (["FILE:make", "--batch", "float32[2,8]", "--step", "nothing"], "no 'nothing'"),
        (["FILE:make", "--batch", "float32[2"], "no tensor"),
        (["FILE:make", "--batch", "float32[2,9]"], "the step fails on cpu"),
        (["FILE:make", "--batch", "float32[2,8]", "--device", "cuda"], "no 'cuda'"),
        (["FILE:make", "--batch", "float32[2,8]", "--only", "x"], "--only"),
        (["FILE:make", "--batch", "float32[2,8]", "--script", "/no/such/x.py"], "no folder"),
        (["--only", "nothing"], "no known issue"),
        (["--batch", "float32[2,8]"], "--batch is for"),
        (["--script", "x.py"], "--script is for"),
        (["--inference"], "--inference is for"),
    ],
)
def test_what_is_refused(capsys, file, words, text):
    code, said = run(capsys, *[word.replace("FILE", file) for word in words])
    assert code == 2
    assert text in " ".join(said.err.split())


def test_without_an_accelerator(capsys):
    assert main(["check"]) == 2
    assert "no accelerator" in " ".join(capsys.readouterr().err.split())
