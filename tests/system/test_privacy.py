"""What no report shows: names, home folders, addresses, secrets."""

import json
import platform

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.cli.json_output import print_json
from mpskit.system.privacy import program_name, scrub, scrub_all


@pytest.fixture
def alice(monkeypatch, tmp_path):
    home = tmp_path / "alice"
    home.mkdir()
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    monkeypatch.setenv("USER", "bo")
    monkeypatch.setenv("USERNAME", "leo")
    monkeypatch.setenv("LOGNAME", "Alice.Hopper")
    monkeypatch.setattr(platform, "node", lambda: "alices-mbp.local")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("{home}/link/models", "~/models"),
        ("{home}/alice/models", "~/models"),
        ("{home}/alicette/models", "{home}/alicette/models"),
        ("in {home}/link", "in ~"),
        ("on alices-mbp.local", "on (name)"),
        ("on Alices-MBP now", "on (name) now"),
        ("alice.hopper owns it", "(name) owns it"),
        ("user bo here", "user (name) here"),
        ("a boat, a Bo", "a boat, a Bo"),
        ("Leo is LEO", "(name) is (name)"),
        ("/home/bob/venv and /Users/carol/x", "/home/(name)/venv and /Users/(name)/x"),
        (r"C:\Users\dave\x", r"C:\Users\(name)\x"),
        ("mail bob+x@some.example.org now", "mail (address) now"),
        ("hf_SECRET123 and ghp_abcdefgh", "(secret) and (secret)"),
        ("run --token abc --seed 3", "run --token (secret) --seed 3"),
        ("API_KEY=abc, password: x", "API_KEY=(secret) password: (secret)"),
        ("token length 5 of sk-8", "token length 5 of sk-8"),
        ("pytorch@2.13 on cuda:0", "pytorch@2.13 on cuda:0"),
    ],
)
def test_scrub(alice, text, clean):
    assert scrub(text.format(home=alice)) == clean.format(home=alice)


@pytest.mark.parametrize("name", ["root", "runner", "mps", "linux", "is", "a", ""])
def test_names_that_identify_nobody_stay(monkeypatch, name):
    for variable in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(variable, name)
    monkeypatch.setattr(platform, "node", lambda: name)
    text = "a hosted runner is a linux machine: root, mps"
    assert scrub(text) == text


def test_a_machine_without_a_name(monkeypatch):
    def fail():
        raise OSError

    monkeypatch.setattr(platform, "node", fail)
    assert scrub("as it is") == "as it is"


def test_every_string_of_a_tree_and_no_key(alice):
    tree = {"alices-mbp": ["alices-mbp", {"x": ("bo", 3, None, True)}]}
    assert scrub_all(tree) == {"alices-mbp": ["(name)", {"x": ["(name)", 3, None, True]}]}


def test_every_json_document_is_scrubbed(alice, capsys):
    print_json("x", {"plot": f"{alice}/link/memory.png", "deep": [{"error": "no alices-mbp"}]})
    found = json.loads(capsys.readouterr().out)
    assert (found["plot"], found["deep"]) == ("~/memory.png", [{"error": "no (name)"}])


@given(st.text())
def test_any_text_can_be_scrubbed_and_twice_is_once(text):
    assert scrub(scrub(text)) == scrub(text)


@pytest.mark.parametrize(
    ("executable", "name", "shown"),
    [
        ("/usr/bin/python3.11", "celeryd: celery@alices-mbp --token hf_x", "python3.11"),
        (None, "celeryd: celery@alices-mbp:worker --token hf_x", "celeryd"),
        ("", "sshd: bob@pts/0", "sshd"),
        (None, "/Users/someone/bin/tool --user bob", "tool"),
        (None, "postgres(alice)", "postgres"),
        ("/Applications/A B.app/Contents/MacOS/A B (Renderer)", "x", "A B (Renderer)"),
        (r"C:\Program Files\x\tool.exe", "x", "tool.exe"),
        ("/bin/a\nb\x1b[2J\udcff", "x", "a?b?[2J?"),
        (None, "x" * 10**6, "x" * 60),
        (None, None, ""),
        (None, 5, ""),
        (None, "..", ""),
    ],
)
def test_a_program_is_called_by_its_executable_s_name(executable, name, shown):
    assert program_name(executable, name) == shown
