"""The doctor as a person, a script and a public issue see it."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mpskit.cli import device_test as _device_test
from mpskit.cli import doctor_checks as _checks
from mpskit.cli.main import main
from mpskit.errors import SettingsError
from mpskit.host import HostKind
from mpskit.host.machines import machines
from mpskit.simulation import simulate


def _run(*words, **variables):
    return subprocess.run(
        [sys.executable, "-m", "mpskit", *words],
        capture_output=True, text=True, timeout=280, env={**os.environ, **variables}, check=False,
    )  # fmt: skip


def _told(capsys, *words):
    """Return the exit code and what the command prints in this process."""
    code = main(["doctor", *words])
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def test_without_a_command_it_is_the_doctor_that_says_everything_in_plain_text():
    done = _run()
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("machine:", "torch:", "mps:", "cuda:", "cpu:", "device:", "memory:"):
        assert part in done.stdout
    assert "device test: PASS" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_json_is_one_document_with_a_schema(capsys):
    report = json.loads(_told(capsys, "--json")[1])
    assert (report["schema"], report["command"], report["ok"]) == (1, "doctor", True)
    assert report["device"]["device"] == "cpu"
    assert report["device_test"] == {"device": "cpu", "passed": True, "error": None}
    assert {b["device"]: b["usable"] for b in report["backends"]}["cpu"] is True
    mps = next(b for b in report["backends"] if b["device"] == "mps")
    assert {"built", "available", "usable", "code", "reason", "fix"} <= mps.keys()
    assert report["machine"]["memory_total_bytes"] > 0
    assert {"name", "mark", "seen", "why", "fix"} == report["checks"][0].keys()


def test_quiet_prints_only_what_failed(capsys):
    assert _told(capsys, "--quiet") == (0, "")


def test_a_wrong_variable_is_a_failed_check_and_json_comes_all_the_same(capsys, monkeypatch):
    monkeypatch.setenv("MPSKIT_DEVICE", "gpu")
    code, printed = _told(capsys, "--json")
    report = json.loads(printed)
    assert (code, report["ok"]) == (1, False)
    failed = [check for check in report["checks"] if check["mark"] == "fail"]
    assert any("MPSKIT_DEVICE='gpu'" in check["seen"] for check in failed)
    assert [check["fix"] for check in failed] == ["unset MPSKIT_DEVICE"] * len(failed)


@pytest.mark.parametrize(
    "fault",
    ["raise ImportError('no torch')", "raise OSError('libtorch')", "raise RuntimeError('bad')", ""],
)
def test_a_broken_torch_is_one_failed_check_with_its_remedy(tmp_path, fault):
    (tmp_path / "torch.py").write_text(fault)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = _run("doctor", "--json", PYTHONPATH=path)
    failed = [check for check in json.loads(done.stdout)["checks"] if check["mark"] == "fail"]
    assert (done.returncode, [check["name"] for check in failed]) == (1, ["torch"])
    assert failed[0]["fix"].endswith("-m pip install --force-reinstall torch")
    assert done.stderr == ""


def test_a_closed_output_is_no_traceback():
    command = f"{sys.executable} -m mpskit doctor --quiet >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_scrub_where_there_is_no_home(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert _checks.scrub("seen in a folder") == "seen in a folder"


def test_nothing_private_is_printed():
    secret = {"USER": "grace.hopper", "LOGNAME": "grace.hopper"}
    done = _run("doctor", "--json", MPSKIT_DEVICE=f"{Path.home()}/grace.hopper", **secret)
    assert json.loads(done.stdout)["ok"] is False
    for private in ("grace.hopper", str(Path.home()) + "/"):
        assert private not in done.stdout.replace("\\/", "/")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"{Path.home()}/models/x", "~/models/x"),
        ("host mac-of-grace is down", "host (name) is down"),
        ("a mac-of-graceful design", "a mac-of-graceful design"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_scrub(monkeypatch, text, clean):
    monkeypatch.setattr(platform, "node", lambda: "mac-of-grace")
    assert _checks.scrub(text) == clean


def test_a_look_that_fails_hides_no_other(monkeypatch, capsys):
    def broken(_):
        raise ZeroDivisionError("sensor on fire")

    def refused(_):
        raise SettingsError("use the other one", given=1)

    broken.__name__, refused.__name__ = "_broken", "_refused"
    for name, look in (("_power", broken), ("_bugs", refused)):
        monkeypatch.setattr(_checks, name, look)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL broken: ZeroDivisionError: sensor on fire" in printed
    assert "FAIL refused: use the other one" in printed
    assert "device test: PASS" in printed
    assert "2 check(s) failed." in printed


def test_the_device_test_reports_the_exception():
    assert _device_test.train_one_step("cpu") is None
    failure = _device_test.train_one_step("mps")
    assert "mps" in failure.lower()
    assert "\n" not in failure


def test_a_device_that_fails_is_a_failed_check(monkeypatch, capsys):
    monkeypatch.setattr(_device_test, "train_one_step", lambda _: "RuntimeError: out of luck")
    assert main(["doctor", "--quiet"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL device test: FAIL: RuntimeError: out of luck" in printed
    assert "why it matters" in printed
    assert "fix: export MPSKIT_DEVICE=cpu" in printed


def test_colour_needs_a_terminal(monkeypatch):
    from mpskit.cli import output as _print

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert _print._console() is not None
    monkeypatch.setenv("NO_COLOR", "1")
    assert _print._console() is None


def _every_machine():
    seen = set()
    for name, machine in machines().items():
        # One of each chip and kind in every run. A virtual Mac's MPS is tried in a process of its own.
        alike = (machine.kind, machine.chip.split()[0]) in seen
        seen.add((machine.kind, machine.chip.split()[0]))
        yield pytest.param(machine, id=name, marks=pytest.mark.full if alike else ())


@pytest.mark.parametrize("machine", list(_every_machine()))
def test_it_comes_to_a_verdict_on_every_machine(machine):
    with simulate(machine):
        found = _checks.gather()
    usable = machine.kind is HostKind.APPLE_SILICON
    assert [check.seen for check in found.checks if check.mark == "fail"] == []
    assert found.facts["device"]["device"] == ("mps" if usable else "cpu")
    assert found.facts["device_test"]["passed"]
