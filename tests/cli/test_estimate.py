"""``mpskit estimate``: the command against the function, exit codes, and bad words."""

import json

import pytest

from mpskit.cli.main import main

pytestmark = pytest.mark.needs_torch("estimate")

MODEL = """
from torch import nn

def make_model():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return f"{path}:make_model"


def test_the_table(model, capsys):
    words = ["estimate", model, "--batch", "float32[32,64]", "int64[32]", "--machine", "m1-8gb"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "optimizer state" in out
    assert "m1-8gb: fits" in out


def test_json_also_when_the_answer_is_no(model, capsys):
    words = ["estimate", model, "--batch", "float32[40000000,64]", "--machine", "m1-8gb", "--json"]
    assert main([*words, "--optimizer", "sgd"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["command"]) == (1, "estimate")
    assert document["verdict"]["answer"] == "does-not-fit"
    assert document["peak_bytes"] > 8 * 2**30


def test_inference_on_the_cpu(model, capsys):
    words = ["estimate", model, "--batch", "input=float32[8,64]", "--inference", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["gradients_bytes"], document["verdict"]) == (0, None)


def test_a_picture(model, capsys, tmp_path):
    path = tmp_path / "timeline.png"
    assert main(["estimate", model, "--batch", "float32[8,64]", "--plot", str(path)]) == 0
    assert path.stat().st_size > 10_000
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "nowhere.py:make"}, "FILE.py:NAME"),
        ({"name": "missing"}, "has no 'missing'"),
        ({"batch": "int64"}, "dtype"),
        ({"machine": "m0-1gb"}, "m0-1gb"),
    ],
)
def test_words_that_cannot_be_used(model, capsys, change, text):
    target = change.get("model", model)
    if "name" in change:
        target = target.rpartition(":")[0] + ":" + change["name"]
    words = ["estimate", target, "--batch", change.get("batch", "float32[8,64]")]
    assert main([*words, "--machine", change.get("machine", "m1-8gb")]) == 2
    assert text in capsys.readouterr().err
