"""``mpskit budget``: the command against the function, and bad words."""

import json
import subprocess
import sys

import pytest
import torch

from mpskit import MemoryBudget, memory_budget_for
from mpskit._base.sizes import GIB
from mpskit.cli.main import main
from mpskit.host import find_machine


def told(capsys):
    document = json.loads(capsys.readouterr().out)
    assert (document.pop("schema"), document.pop("command")) == (1, "budget")
    return MemoryBudget.model_validate_json(json.dumps(document))


@pytest.mark.parametrize(("gib", "macos"), [(16, "15.6"), (16, "26"), (8, "26"), (512, "27")])
def test_another_mac_by_its_figures(capsys, gib, macos):
    assert main(["budget", "--ram-gib", str(gib), "--macos", macos, "--json"]) == 0
    assert told(capsys) == memory_budget_for(gib * GIB, macos)


@pytest.mark.parametrize("name", ["m1-8gb", "macbook-air-m1-8gb", "m3-max-64gb", "intel-mac-32gb"])
def test_another_mac_by_name(capsys, name):
    assert main(["budget", "--machine", name, "--json"]) == 0
    machine, found = find_machine(name), told(capsys)
    expected = memory_budget_for(machine.ram_bytes, machine.macos, machine.chip)
    assert found == expected


@pytest.mark.parametrize(
    ("words", "bytes_"),
    [("16", 16 * GIB), ("7.5", 15 * GIB // 2), ("16GB", 16 * GIB), ("512 GiB", 512 * GIB)],
)
def test_memory_with_or_without_a_unit(capsys, words, bytes_):
    assert main(["budget", "--ram-gib", words, "--json"]) == 0
    assert told(capsys).total_bytes == bytes_


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["--machine", "rosetta-m2-16gb"], "Rosetta"),
        (["--machine", "m1-16gb", "--macos", "10.15"], "from macOS 12.3"),
        (["--machine", "m6-32gb", "--macos", "12.0"], "from macOS 12.3"),
        (["--ram-gib", "32", "--macos", "11"], "from macOS 12.3"),
    ],
)
def test_a_mac_that_has_no_mps_has_the_budget_of_its_cpu(capsys, words, note):
    assert main(["budget", *words, "--json"]) == 0
    found = told(capsys)
    assert (found.device, found.recommended_source, found.limit_bytes) == ("cpu", "ram", None)
    assert any(note in line for line in found.notes)
    assert not any("PyTorch's own limit" in line for line in found.notes)


def test_a_macos_that_this_torch_does_not_run_mps_on_is_noted(capsys, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    assert main(["budget", "--ram-gib", "16", "--macos", "12.6", "--json"]) == 0
    found = told(capsys)
    assert found.device == "mps"
    assert any("install an older torch" in line for line in found.notes)


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["--device", "mps"], "Metal does not say"),
        (["--machine", "m1-16gb", "--reserve", "16GB"], "nothing is left besides the reserve"),
    ],
)
def test_a_budget_without_anything_usable_is_a_no(capsys, words, note):
    assert main(["budget", *words]) == 1
    assert note in capsys.readouterr().out


def test_a_machine_with_another_macos_and_a_card(capsys):
    assert main(["budget", "--machine", "m1-16gb", "--macos", "26", "--json"]) == 0
    assert told(capsys).recommended_bytes == 12713115648
    assert main(["budget", "--machine", "intel-mac-amd-32gb", "--json"]) == 0
    assert told(capsys).total_bytes < 32 * GIB


def test_this_machines_cpu(capsys):
    assert main(["budget", "--device", "cpu", "--reserve", "1GiB", "--json"]) == 0
    found = told(capsys)
    assert (found.device, found.reserve_bytes) == ("cpu", GIB)


def test_for_a_person(capsys):
    assert main(["budget", "--machine", "m1-8gb", "--reserve", "10%"]) == 0
    out = capsys.readouterr().out
    assert "recommended         5.33 GiB" in out
    assert "usable" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--macos", "26"], "--macos is for another Mac"),
        (["--machine", "m0-8gb"], "m0-8gb"),
        (["--ram-gib", "0"], "positive"),
        (["--ram-gib", "-3"], "--ram-gib must be positive, got -3"),
        (["--ram-gib", "nan"], "positive"),
        (["--ram-gib", "much"], "not a size"),
        (["--ram-gib", "16", "--macos", "new"], "not a version"),
        (["--ram-gib", "16", "--reserve", "much"], "not a size"),
        (["--device", "banana"], "not a device"),
    ],
)
def test_bad_words_are_one_line_on_stderr_and_exit_2(capsys, words, said):
    assert main(["budget", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["--machine", "m1-8gb", "--much"], ["--machine", "m1-8gb", "--ram-gib", "8"]]
)
def test_usage_is_exit_2(words):
    with pytest.raises(SystemExit) as caught:
        main(["budget", *words])
    assert caught.value.code == 2


def test_another_mac_does_not_import_torch():
    code = (
        "import sys; from mpskit.cli.main import main\n"
        "main(['budget', '--ram-gib', '16', '--macos', '15.6', '--json'])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["limit_bytes"] == 19470527692


def test_another_mac_is_found_without_what_it_does_not_need():
    """What made the command slow: each of these takes milliseconds, one machine needs none."""
    code = (
        "import sys; from mpskit.cli.main import main\n"
        "assert main(['budget', '--machine', 'm1-8gb']) == 0\n"
        "needless = {'torch', 'psutil', 'subprocess', 'tomllib', 'importlib.metadata',\n"
        "    'pydantic.plugin._loader', 'mpskit.host.host', 'mpskit.system.machine'}\n"
        "assert not needless & set(sys.modules), needless & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
