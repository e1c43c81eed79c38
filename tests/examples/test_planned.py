"""The planned trainings run as a user runs them: here, on simulated Macs, rehearsed, in two processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# Each run starts processes that import torch and a trainer: ten seconds and more of processor time.
# Every run of the tests makes two of them, one without a trainer and one that ends in a new plan;
# tests/integrations holds the trainers to their plans within its own process.
FULL = pytest.mark.full

# What each is run with, so that it takes seconds.
SHORT = {
    "lora_transformers.py": ("--steps", "6"),
    "resnet_cifar.py": ("--width", "8", "--epochs", "2", "--optimizers", "adamw"),
    "lstm_forecast.py": ("--epochs", "2", "--samples", "256"),
    "lightning_digits.py": ("--epochs", "2", "--samples", "256"),
}
MACS = ("m1-8gb", "m1-pro-16gb", "m3-max-64gb", "github-macos-15-vm", "intel-mac-16gb")
# No Metal that torch uses, and a virtual machine whose MPS fails when it is tried.
ON_CPU = ("intel-mac-16gb", "github-macos-15-vm")
LIGHT = {("resnet_cifar.py", "m1-pro-16gb")}
PACKAGES = {
    "lora_transformers.py": ("transformers", "peft"),
    "lightning_digits.py": ("lightning",),
}

pytestmark = pytest.mark.needs_torch("simulation")


def run(*words, errors=True):
    """Run a module in a process of its own and return what it printed, with or without stderr."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "MPSKIT_NO_CACHE": "1"}
    done = subprocess.run(
        (sys.executable, "-m", *words),
        capture_output=True,
        text=True,
        timeout=280,  # on a busy machine; pytest's own limit is 300
        env=environ,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + (done.stderr if errors else "")


def on_mac(machine, name, out, *more):
    for package in PACKAGES.get(name, ()):
        pytest.importorskip(package)
    script = (str(EXAMPLES / name), "--out", str(out), *SHORT[name], *more)
    return run("mpskit", "simulate", machine, "--", *script)


def rows():
    for name in SHORT:
        for machine in MACS:
            marks = () if (name, machine) in LIGHT else (FULL,)
            yield pytest.param(name, machine, marks=marks)


@pytest.mark.parametrize(("name", "machine"), tuple(rows()))
def test_the_same_script_trains_on_every_mac(name, machine, tmp_path):
    text = on_mac(machine, name, tmp_path)
    device = "cpu" if machine in ON_CPU or name == "lstm_forecast.py" else "mps"
    assert re.search(rf" on this machine \({device}\)$", text, re.M)
    assert ("mps limited to" in text) == (device == "mps" and name == "lora_transformers.py")
    assert f"Peak memory of {device}" in text
    assert re.search(r"loss \d.\d+ -> \d.\d+", text)
    assert [one for one in tmp_path.rglob("*.png") if one.read_bytes().startswith(b"\x89PNG")]


@FULL
def test_the_lstm_is_faster_on_a_macs_cpu(tmp_path):
    text = on_mac("m1-pro-16gb", "lstm_forecast.py", tmp_path)
    assert re.search(r"the CPU is predicted \d+(\.\d+)? times faster for this workload", text)
    assert re.search(r"^loss .* on cpu$", text, re.M)


@FULL
@pytest.mark.parametrize(
    ("name", "longer", "done"),
    [
        ("lora_transformers.py", ("--steps", "8"), " in 8 steps"),
        ("resnet_cifar.py", ("--epochs", "3"), "epoch 3"),
        ("lstm_forecast.py", ("--epochs", "3"), "epoch 3"),
        ("lightning_digits.py", ("--epochs", "3"), "`max_epochs=3` reached"),
    ],
)
def test_a_run_is_resumed(name, longer, done, tmp_path):
    first = on_mac("m1-8gb", name, tmp_path)
    assert done not in first
    text = on_mac("m1-8gb", name, tmp_path, *longer, "--resume")
    assert done in text
    assert "epoch 1 " not in text  # it is not begun again


def test_the_lora_goes_on_with_the_next_plan(tmp_path):
    more = ("--effective-batch", "32", "--seq-len", "128", "--limit", "100MiB", "--steps", "4")
    text = on_mac("m1-8gb", "lora_transformers.py", tmp_path, *more)
    assert "Next plan: a batch of 16 x 2 accumulated" in text
    saved = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert (saved["global_step"], saved["train_batch_size"]) == (4, 16)


@FULL
@pytest.mark.parametrize("name", SHORT)
def test_the_script_is_rehearsed(name, tmp_path):
    for package in PACKAGES.get(name, ()):
        pytest.importorskip(package)
    words = ("mpskit", "rehearse", "m1-8gb", "m3-max-64gb", "--json", "--")
    script = (str(EXAMPLES / name), "--out", str(tmp_path / "out"), *SHORT[name])
    report = json.loads(run(*words, *script, errors=False))
    assert (report["verdict"], report["steps"]) == ("fits", 3)
    assert {one["severity"] for one in report["findings"]} <= {"note", "slow"}
    assert not (tmp_path / "out").exists()


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "accelerate": (
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0"),
    ),
}


@FULL
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_together(launcher, tmp_path):
    pytest.importorskip("peft")
    script = str(EXAMPLES / "lora_transformers.py")
    words = (script, "--out", str(tmp_path / "two"), *SHORT["lora_transformers.py"])
    text = run(*LAUNCHERS[launcher], *words)
    assert "4 rows of 32 tokens x 1 accumulated x 2 processes (DDP) = 8 rows" in text
    assert text.count("Peak memory of cpu") == 1  # the first process speaks for both
    state = json.loads((tmp_path / "two" / "checkpoint-6" / "trainer_state.json").read_text())
    assert (state["global_step"], state["train_batch_size"]) == (6, 4)
    assert (tmp_path / "two" / "adapters" / "adapter_model.safetensors").exists()
