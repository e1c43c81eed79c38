"""``mpskit simulate``: an unmodified script, its exit code, the list of machines."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mpskit.cli.main import main
from mpskit.host import machine_names

SCRIPT = """
import platform, sys
before = platform.machine()
import torch
print(before, torch.ones(1, device="mps").device, sys.argv[1:])
raise SystemExit(int(sys.argv[-1]))
"""


def simulate(*words, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "mpskit", "simulate", *words],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        **kwargs,
    )


@pytest.mark.needs_torch("simulation")
def test_a_script_runs_on_the_machine_and_passes_on_its_exit_code(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    done = simulate("m1-8gb", "--macos", "15.3", "--", str(path), "--epochs", "7")
    assert done.stdout.strip() == "arm64 mps:0 ['--epochs', '7']", done.stderr
    assert done.returncode == 7


@pytest.mark.needs_torch("simulation")
def test_a_module_and_json():
    code = "import torch; print(torch.backends.mps.is_available())"
    done = simulate("macbook-air-m1-8gb", "--json", "--", "-c", code)
    first, _, document = done.stdout.partition("\n")
    assert first == "True", done.stderr
    assert json.loads(document) == {
        "schema": 1,
        "command": "simulate",
        "machine": "macbook-air-m1-8gb",
        "run": ["-c", code],
        "exit_code": 0,
    }


@pytest.mark.full  # two more processes that import torch
@pytest.mark.needs_torch("simulation")
def test_fallback_and_streams_reach_the_script():
    code = "import torch; torch.ones(3, device='mps').mode(); print('ran')"
    done = simulate("m1-8gb", "--fallback", "--rng", "separate", "--", "-c", code)
    assert done.stdout == "ran\n", done.stderr
    assert "will fall back to run on the CPU" in done.stderr
    done = simulate("m1-8gb", "--", "-c", code)
    assert done.returncode == 1
    assert "NotImplementedError: The operator 'aten::mode' is not currently" in done.stderr


@pytest.mark.needs_torch("simulation")
def test_a_signal_becomes_the_shells_code():
    done = simulate("m1-8gb", "--", "-c", "import os; os.kill(os.getpid(), 9)")
    assert done.returncode == 137


def test_list(capsys):
    assert main(["simulate", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(machine_names())
    assert lines[1].startswith("m1-8gb              M1 with 8 GiB, macOS 15.6  ")
    assert lines[1].endswith("  macbook-air, imac, macbook-pro, mac-mini")


def test_list_as_json(capsys):
    assert main(["simulate", "--list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert document["machines"]["m1-8gb"]["ram_gib"] == 8
    assert "macbook-air-m1-8gb" in document["machines"]["m1-8gb"]["aliases"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["m1-9gb", "--", "x.py"], "no machine is called 'm1-9gb'"),
        (["m1-8gb"], "name a machine and what to run"),
        ([], "name a machine and what to run"),
        (["m1-8gb", "--", "no-such-program"], "cannot run 'no-such-program'"),
        (["m1-8gb", "--macos", "Sonoma", "--", "x.py"], "'Sonoma' is not a macOS version"),
    ],
)
def test_usage(words, text, capsys):
    assert main(["simulate", *words]) == 2
    assert text in capsys.readouterr().err


def test_an_unknown_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", "m1-8gb", "--speed", "9", "--", "x.py"])
    assert stopped.value.code == 2
    assert "--speed" in capsys.readouterr().err


# Only a hang takes so long: no test measures how fast a busy machine is.
LONG = 120.0

SAVES = """
import os, pathlib, sys, time
try:
    pathlib.Path("pid").write_text(str(os.getpid()))
    time.sleep(100)
except KeyboardInterrupt:
    time.sleep(1)
    pathlib.Path("saved").write_text("checkpoint")
    sys.exit(7)
"""


@pytest.fixture
def running(tmp_path):
    """A script under the command, in a session of its own."""
    (tmp_path / "train.py").write_text(SAVES)
    command = [sys.executable, "-m", "mpskit", "simulate", "m1-8gb", "--", "train.py"]
    process = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stdin=subprocess.DEVNULL
    )
    pid = tmp_path / "pid"
    while process.poll() is None and not (pid.exists() and pid.read_text()):
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


@pytest.mark.needs_torch("simulation")
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["process", "group"])
def test_an_interrupted_script_saves_its_checkpoint(running, send, tmp_path):
    send(running.pid, signal.SIGINT)
    assert running.wait(LONG) == 7
    assert (tmp_path / "saved").read_text() == "checkpoint"


@pytest.mark.needs_torch("simulation")
def test_a_terminated_command_leaves_no_orphan(running, tmp_path):
    running.terminate()
    assert running.wait(LONG) == 143
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
