"""Every code block of README and docs runs: doctests by `make docs`, all others here.

A command is run in a folder with the files that the pages name (train.py, config.json), and may say no
(exit code 1), but not be misused (2) or fail with a traceback. Where a ``console`` block shows output, it
must be that output; ``...`` stands for any.
"""

import doctest
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pages
import pytest

from mpskit.cli import main as cli

BLOCKS = [block for page in pages.PAGES for block in pages.blocks(page)]
_RUN = re.compile(r"^\s*(?:\$ )?((?:\w+=\S+ )*mpskit(?: .*)?)$")
_IMPORT = re.compile(r"^(?:>>> )?(from mpskit[\w.]* import [\w, ]+)$", re.MULTILINE)
_SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# Commands in indented blocks, in shell blocks, and in the help texts of reference/cli.md.
SHELL = ("", "sh", "console", "text")
_BEGIN = {"console": "$ ", "text": "  "}  # what else in such a block begins with mpskit is prose

TRAIN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 10)

    def forward(self, x):
        return self.layer(x.flatten(1)[:, :8])


def make_model():
    return Net()


def make_step(device):
    model, batch = Net().to(device), torch.ones(32, 784, device=device)
    return lambda: model(batch).sum().backward()


def main():
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    model = Net().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        model(torch.ones(32, 784).to(device)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
"""
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 256,
    "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip


def commands(block):
    """Yield each mpskit command of a block with the output that the block shows after it."""
    if block.language not in SHELL or (block.language == "text" and "cli.md" not in block.page):
        return
    text = block.body.replace("\\\n", " ")
    found = None
    for line in text.splitlines():
        match = _RUN.match(line)
        if match and line.startswith(_BEGIN.get(block.language, "")):
            if found:
                yield found
            found = [re.sub(r"\s+# .*$", "", match[1]).strip(), ""]
        elif found and block.language == "console":
            found[1] += line + "\n"
    if found:
        yield found


SHOWN = [(block, *found) for block in BLOCKS for found in commands(block)]
SHOWN = list(
    {(command, output): (block, command, output) for block, command, output in SHOWN}.values()
)
IDS = [f"{block}-{command[:40]}" for block, command, _ in SHOWN]


def test_commands_are_found():
    assert len(SHOWN) > 50
    assert any(output for _, _, output in SHOWN)


@pytest.mark.parametrize(("block", "command", "output"), SHOWN, ids=IDS)
def test_a_command_is_understood(block, command, output):
    words = shlex.split(re.split(r" [|>] ", command)[0])
    words = words[words.index("mpskit") + 1 :] or ["doctor"]
    parser = cli._parser(cli._command(words))
    try:
        parser.parse_args(words)
    except SystemExit as error:
        assert not error.code, f"{block}: {command}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the pages name."""
    path = tmp_path_factory.mktemp("reader")
    (path / "examples").symlink_to(pages.ROOT / "examples")
    for name in ("train.py", "server.py", "my_package/train.py", "my_package/__init__.py"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("" if "__init__" in name else TRAIN)
    for name in ("config.json", "path/to/config.json"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(CONFIG))
    (path / "tests").mkdir()
    (path / "tests" / "test_one.py").write_text("def test_one(): pass\n")
    (path / "Makefile").write_text("bench:\n\t@true\n")
    bin_ = path / "bin"
    bin_.mkdir()
    scripts = {
        "mpskit": f'exec "{sys.executable}" -m mpskit "$@"',
        "python": f'exec "{sys.executable}" "$@"',  # a link would leave its environment behind
        "pbcopy": "cat > /dev/null",
    }
    for name, line in scripts.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin_ / name).chmod(0o755)
    return path


def run(folder, command):
    environ = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
        "MPSKIT_NO_CACHE": "1",
    }
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder, env=environ, capture_output=True, text=True, timeout=840, check=False,
    )  # fmt: skip


@pytest.mark.full  # 200 processes: in every run each command is parsed, above
@pytest.mark.timeout(900)  # `mpskit validate` and `check` start dozens of processes
@pytest.mark.needs_torch("simulation")
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("block", "command", "output"), SHOWN, ids=IDS)
def test_a_command_runs(folder, block, command, output):
    done = run(folder, command)
    said = f"{block}: {command}\n{done.stdout}\n{done.stderr}"
    if done.returncode == 2 and "this machine has no " in done.stderr:
        pytest.skip("needs an accelerator; the same command on a simulated Mac is on the page too")
    assert done.returncode in (0, 1), said
    assert "Traceback" not in done.stderr, said
    if output.strip():
        checker = doctest.OutputChecker()
        assert checker.check_output(output, done.stdout, _SAME), said


def _python_blocks():
    """Yield blocks of Python that are no doctests, with what the page has imported before."""
    for page in pages.PAGES:
        text = page.read_text("utf-8")
        for block in pages.blocks(page):
            if block.language != "python" or ">>>" in block.body:
                continue
            before = "\n".join(text.splitlines()[: block.line - 1])
            if not re.search(r"<!-- from \S+ -->\n```python$", before):
                yield block, "\n".join(_IMPORT.findall(before))


@pytest.mark.full  # a process a block: in every run its imports are tried, below
@pytest.mark.needs_torch("simulation")
@pytest.mark.parametrize(("block", "imports"), list(_python_blocks()), ids=str)
def test_python_that_is_no_doctest_runs(tmp_path, folder, block, imports):
    file = tmp_path / "block.py"
    file.write_text(f"{imports}\n{block.body}", "utf-8")
    runner = Path(__file__).with_name("run_block.py")
    done = run(folder, shlex.join(["mpskit", "simulate", "m1-8gb", "--", str(runner), str(file)]))
    assert done.returncode == 0, f"{block}\n{done.stderr}"


def _quotes():
    for page in pages.PAGES:
        text = page.read_text("utf-8")
        for name, body in re.findall(
            r"<!-- from (\S+) -->\n```python\n(.*?)^```$", text, re.M | re.S
        ):
            yield page.name, name, body


def test_what_is_quoted_from_a_file_is_in_it():
    quotes = list(_quotes())
    assert quotes
    for page, name, body in quotes:
        assert body in (pages.ROOT / name).read_text("utf-8"), f"{page} quotes {name}"


def test_python_that_is_no_doctest_imports_what_exists():
    for block, imports in _python_blocks():
        for line in _IMPORT.findall(f"{imports}\n{block.body}"):
            module, _, names = line.removeprefix("from ").partition(" import ")
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{block}: {line}"
