import json
import os
import subprocess
import sys

import pytest
import torch

import mpskit
from mpskit.cli import device
from mpskit.cli.main import COMMANDS, main
from mpskit.errors import DeviceUnavailableError


def test_the_device_is_one_bare_word(capsys):
    assert main(["device"]) == 0
    assert capsys.readouterr().out == "cpu\n"


def test_why_adds_the_paragraph(capsys):
    assert main(["device", "--why"]) == 0
    word, paragraph = capsys.readouterr().out.splitlines()
    assert word == "cpu"
    assert paragraph == str(mpskit.get_optimal_device().info)


def test_device_json(capsys):
    assert main(["device", "--json", "--cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["device"], report["basis"]) == (1, "cpu", "forced")


@pytest.mark.parametrize(
    "words", [["device", "--policy", "fastest"], ["nonsense"], ["device", "--x"]]
)
def test_usage_is_two(words, capsys):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert capsys.readouterr().err


def test_a_warning_is_a_sentence_without_path_and_source(capsys):
    assert main(["device", "--force-mps"]) == 0
    out, err = capsys.readouterr()
    assert out == "cpu\n"
    assert err.startswith("mpskit device: warning: force_mps=True asked for mps, but ")
    assert len(err.splitlines()) == 1


def test_an_error_of_ours_is_one_line(monkeypatch, capsys):
    def run(_):
        raise DeviceUnavailableError("no such card", given=3)

    monkeypatch.setattr(device, "run", run)
    assert main(["device"]) == 2
    assert capsys.readouterr().err == "mpskit device: no such card\n"


@pytest.mark.parametrize("error", [ImportError("no torch"), OSError("libtorch.so is missing")])
def test_a_torch_that_cannot_be_loaded_is_one_line(monkeypatch, capsys, error):
    def run(_):
        raise error

    monkeypatch.setattr(device, "run", run)
    assert main(["device"]) == 1
    assert capsys.readouterr().err == f"mpskit device: {error} (see: mpskit doctor)\n"


@pytest.mark.parametrize(
    ("lacks", "said"),
    [("backends", "only in part: it has no torch.backends"), (None, "broken in a way")],
)
def test_an_error_of_a_torch_that_is_whole_is_not_hidden(monkeypatch, capsys, lacks, said):
    def run(_):
        raise AttributeError("broken in a way of our own")

    monkeypatch.setattr(device, "run", run)
    if lacks is None:
        with pytest.raises(AttributeError, match=said):
            main(["device"])
    else:
        monkeypatch.delattr(torch, lacks)
        assert main(["device"]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["__version__ = '2.13.0'", "raise SystemError('bad')", ""])
@pytest.mark.parametrize("words", [["device"], ["budget"], ["doctor", "--quiet"]])
def test_a_torch_that_is_installed_in_part_is_one_line(tmp_path, words, text):
    (tmp_path / "torch.py").write_text(text)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "mpskit", *words],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "torch" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "encoding",
    ["ascii", pytest.param("utf-8:strict", marks=pytest.mark.full)],  # the same, four seconds more
)
def test_what_the_output_cannot_encode_is_escaped(encoding):
    environ = os.environb | {
        b"PYTORCH_MPS_FAST_MATH": b"\xff\xc3\xa9",
        b"PYTHONIOENCODING": encoding.encode(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "mpskit", "doctor"], capture_output=True, env=environ, check=False
    )
    assert b"Traceback" not in done.stderr
    assert b"\\udcff" in done.stdout
    assert b"device test: PASS" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: mpskit " + command in capsys.readouterr().out


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mpskit {mpskit.__version__}\n"


def test_help_is_quick_enough_to_import_no_torch():
    code = (
        "import sys\nfrom mpskit.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mpskit est", "estimate"),
        ("mpskit budget --machine m1-8", "m1-8gb"),
        ("mpskit estimate Qwen/Qwen2.5-7", "Qwen/Qwen2.5-7B"),
        ("mpskit doctor --rep", "--report"),
    ],
)
def test_a_shell_completes_commands_options_and_names(line, expected):
    pytest.importorskip("argcomplete")
    code = (
        "import os, sys; from mpskit.cli.main import main\n"
        "sys.argv = ['mpskit']\n"
        "os.dup2(1, 8); main()"
    )
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True
    )
    assert expected in done.stdout.split("\n"), done


def test_a_report_to_paste_is_plain_and_whole(capsys, monkeypatch):
    monkeypatch.setattr("mpskit.cli.output.columns", lambda _: 60)
    assert main(["doctor", "--report"]) == 0
    first, second, *lines, last = capsys.readouterr().out.splitlines()
    assert (first, second, last) == ("```text", f"mpskit {mpskit.__version__}", "```")
    assert any(line.startswith("ok   machine: ") for line in lines)
    assert "\x1b" not in "".join(lines)
