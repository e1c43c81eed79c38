"""``mpskit rehearse``: the report, its exit codes, and what happens to scripts that cannot run."""

import json
import os
import subprocess
import sys

import pytest

from mpskit.backends import versions

pytestmark = pytest.mark.needs_torch("simulation")
FULL = pytest.mark.full  # one more process that imports torch, for one more way to end

_LOOP = """
import argparse, pathlib, torch
from torch import nn
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=64)
width = parser.parse_args().width
model = nn.Linear(width, width).to("mps")
optimizer = torch.optim.AdamW(model.parameters())
for step in range(100):
    loss = model(torch.randn(8, width).to("mps")).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    torch.save(model.state_dict(), "model.pt")
    pathlib.Path("log.txt").write_text("step")
    print("done", step)
"""


def rehearse(folder, script, *words, machines=("m1-8gb",), options=()):
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-m", "mpskit", "rehearse", *machines, *options, "--", "script.py"]
    return subprocess.run(
        [*command, *words], cwd=folder, capture_output=True, text=True, env=dict(os.environ),
        timeout=300, check=False,
    )  # fmt: skip


def test_a_script_that_runs_and_writes_nothing(tmp_path):
    done = rehearse(tmp_path, _LOOP, options=["--json"])
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["command"]) == (1, "rehearse")
    assert (document["verdict"], document["steps"], document["ended"]) == ("fits", 3, "steps")
    written = {one["line"] for one in document["findings"] if one["kind"] == "write"}
    assert written == {14, 15}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py"]
    assert "done 1" in done.stderr


def test_one_that_does_not_fit(tmp_path):
    done = rehearse(tmp_path, _LOOP, "--width", "40000", machines=["m1-8gb", "m1-16gb"])
    assert done.returncode == 1, done.stderr
    assert "m1-8gb: does not fit" in done.stdout
    # Weight, gradient, AdamW's four; each is rounded up to 6 GiB from torch 2.14 on.
    rounded = versions.has("mps.placement_heaps", versions.torch_version())
    assert f"peak {36 if rounded else 35.76:.2f} GiB live" in done.stdout
    assert "m1-16gb: does not fit" in done.stdout


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("import torch\nif:\n", 2, "invalid syntax"),
        ("print('no')\n", 1, "imported no torch"),
        ("import torch, sys\nsys.exit(3)\n", 1, "exit code 3"),
        pytest.param("import torch, sys\nsys.exit(0)\n", 0, "the script ended itself", marks=FULL),
        pytest.param(
            "import torch\nimport no_such_package\n",
            1,
            "script.py:2: ModuleNotFoundError",
            marks=FULL,
        ),
        pytest.param("import torch\nraise KeyboardInterrupt\n", 1, "interrupted", marks=FULL),
    ],
)
def test_scripts_that_end_early(tmp_path, script, code, said):
    done = rehearse(tmp_path, script)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["m1-8gb", "--", "missing.py"], "no such file"),
        (["m1-8gb", "--", "no-such-program"], "no such file, program"),
        (["m1-8gb", "--", "-m"], "name of a module"),
        (["m1-9gb", "--", "x.py"], "m1-9gb"),
        (["m1-8gb", "--steps", "0", "--", "x.py"], "at least one step"),
        (["m1-8gb"], "name a machine"),
    ],
)
def test_wrong_usage(words, said, capsys):
    from mpskit.cli.main import main

    assert main(["rehearse", *words]) == 2
    assert said in capsys.readouterr().err
