"""CONTRIBUTING.md says which files a change touches: each is made in a copy of the source."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from source import ROOT, SRC

Edit = Callable[[str], str]


@dataclass(frozen=True)
class Change:
    """A row of the table: how each file is edited, and code that shows the change."""

    name: str
    edits: Mapping[str, Edit]
    code: str
    shows: str
    environ: Mapping[str, str] = field(default_factory=dict)


def added(text: str) -> Edit:
    """A text at the end of a file, which may be new."""
    return lambda old: f"{old.rstrip()}\n\n{text}" if old else text


def before(anchor: str, text: str) -> Edit:
    """A text before the one place where ``anchor`` stands."""

    def edit(old: str) -> str:
        assert old.count(anchor) == 1, f"{anchor!r} stands {old.count(anchor)} times"
        return old.replace(anchor, text + anchor)

    return edit


def feature(row: str) -> Edit:
    """A row of backends.versions.FEATURES."""
    return before('    "simulation": (', f"    {row},\n")


def chip_row(old: str) -> str:
    newest = old.rstrip().splitlines()[-1]
    return f"{old.rstrip()}\n{newest.replace('M6,6,', 'M7,7,', 1).replace('24|32', '24|48', 1)}\n"


CHANGES = (
    Change(
        "a chip",
        {"data/apple_chips.csv": chip_row},
        "from mpskit.host import find_machine; print(find_machine('m7-48gb'))",
        "m7-48gb: M7 with 48 GiB, macOS 15.6",
    ),
    Change(
        "a machine that the chip table cannot give",
        {
            "data/machines.toml": before(
                "[machine.intel-mac-32gb]",
                '[machine.lab-vm-12gb]\nchip = "Apple M2 (Virtual)"\nram_gib = 12\n\n',
            )
        },
        "from mpskit.host import find_machine; print(find_machine('lab-vm-12gb'))",
        "lab-vm-12gb: Apple M2 (Virtual) with 12 GiB, macOS 15.6, virtual",
    ),
    Change(
        "an allocator rule of a new torch",
        {
            "backends/versions.py": feature('"mps.size_in_bytes": ("2.99", None)'),
            "allocator/mps_text.py": before(
                "    if size <= KIB:",
                "    if has('mps.size_in_bytes', torch_version):\n        return f'{size} bytes'\n",
            ),
        },
        "from mpskit.allocator import allocator_for\n"
        "mac = allocator_for('mps', torch_version='2.99.0', max_buffer_bytes=2**20)\n"
        "try: mac.allocate(2**21)\n"
        "except Exception as error: print(error)",
        "Invalid buffer size: 2097152 bytes",
    ),
    Change(
        "an out-of-memory text",
        {
            "data/oom_texts.toml": added(
                '[[text]]\nbackend = "mps"\nkind = "driver"\npattern = \'Metal is full\'\n'
                'example = "Metal is full"\nsource = "a thread"\n'
            )
        },
        "import mpskit; print(mpskit.is_oom(RuntimeError('Metal is full today')))",
        "True",
    ),
    Change(
        "a variable of torch's MPS backend",
        {
            "data/environment.toml": added(
                '[[variable]]\nname = "PYTORCH_MPS_NEW"\nparse = "nonzero"\nread = "kernel"\n'
                'meaning = "what is new"\nfeature = "mps.env.new"\nsource = "a wheel"\n'
            ),
            "backends/versions.py": feature('"mps.env.new": ("2.2", None)'),
        },
        "import mpskit\n"
        "for one in mpskit.current_environment().variables: print(one.name, one.meaning)",
        "PYTORCH_MPS_NEW on (what is new)",
        {"PYTORCH_MPS_NEW": "1"},
    ),
    Change(
        "a backend of torch",
        {
            "backends/kinds.py": lambda old: before(
                "_CPU = Kind(", '_MTIA = Kind("mtia", "MTIA", api=Api.MODULE)\n'
            )(before("_CPU, _META)", "_MTIA, ")(old)),
            "data/precision.toml": before(
                "[any]\n",
                '[mtia]\nstorage = [{ dtype = "float32" }, { dtype = "bfloat16" }]\n'
                'autocast = [{ dtype = "bfloat16" }]\nscaler = {}\n\n',
            ),
            "data/oom_texts.toml": added(
                '[[text]]\nbackend = "mtia"\nkind = "limit"\npattern = \'MTIA out of memory\'\n'
                'example = "MTIA out of memory"\nsource = "a thread"\n'
            ),
        },
        "import mpskit\n"
        "from mpskit.settings import read_settings\n"
        "policy = read_settings({'MPSKIT_POLICY': 'mtia,cpu'}).policy\n"
        "text = 'MTIA out of memory. Tried to allocate 2.00 GiB'\n"
        "print(policy, mpskit.precision_for('mtia').autocast_dtype, mpskit.parse_oom(text).backend)",
        "('mtia', 'cpu') bfloat16 mtia",
    ),
    Change(
        "an optimizer of torch",
        {
            "data/optimizers.toml": added(
                '[adamax]\nclass = "Adamax"\nstates = 2\nsingle = 1\nforeach = 1\n'
            )
        },
        "import torch\n"
        "from mpskit.memory.optimizer_watch import states_to_come\n"
        "model = torch.nn.Linear(4, 4, bias=False)\n"
        "model(torch.ones(1, 4)).sum().backward()\n"
        "print(states_to_come(torch.optim.Adamax(model.parameters())), 'bytes to come')",
        "128 bytes to come",  # two tensors of 16 float32 each
    ),
    Change(
        "an operator that MPS lacks",
        {
            "data/mps_coverage.toml": added(
                '[[status]]\nops = ["rot90"]\nstatus = "missing"\nsource = "a wheel"\n'
            )
        },
        "import torch, mpskit\n"
        "with mpskit.simulate('m1-8gb'):\n"
        "    try: torch.rot90(torch.ones(2, 2, device='mps'))\n"
        "    except NotImplementedError as error: print(error)",
        "The operator 'aten::rot90' is not currently implemented for the MPS device",
    ),
    Change(
        "memory that an operator takes on MPS",
        {
            "dispatch/mps_op_memory.py": before(
                '    "mkldnn_rnn_layer": _lstm,',
                '    "erfinv": lambda args, grad: OpMemory({}, 2**20),\n',
            )
        },
        "import torch, mpskit\n"
        "class Model(torch.nn.Module):\n    def forward(self, x): return x.erfinv()\n"
        "batch = mpskit.TensorSpec((8,))\n"
        "print(mpskit.estimate_inference_memory(Model, batch, device='mps').peak_bytes)",
        str(2**20 + 512),  # and 256 bytes each of its input and output
    ),
    Change(
        "a known issue of the MPS backend",
        {
            "data/known_issues.toml": added(
                '[[issue]]\nkey = "new"\nsummary = "new is wrong"\nseverity = "minor"\n'
                'torch = ["2.98", ""]\nworkaround = "wait"\nissues = ["pytorch/pytorch#1"]\n'
            )
        },
        "import mpskit\n"
        "host = mpskit.Host.from_readings(mpskit.Machine(chip='M1', ram_gib=8).readings())\n"
        "for one in mpskit.known_issues(host, '2.99.0'):\n    if one.key == 'new': print(one)",
        "minor: new is wrong (pytorch#1). wait",
    ),
    Change(
        "a family of transformers' models",
        {
            "data/model_families.toml": added(
                '[newest]\nkind = "decoder"\nnorm = "layer"\ngated = true\n'
                'defaults = { tie_word_embeddings = true, hidden_act = "silu" }\n'
            )
        },
        "import mpskit\n"
        "sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=100)\n"
        "config = dict(sizes, model_type='newest', num_attention_heads=4)\n"
        "found = mpskit.estimate_from_config(config, batch_size=1, seq_len=8, device='mps')\n"
        # Weights: 100 x 64 of the embedding; in each layer four projections of 64 x 64, three of
        # 64 x 128 and two norms of 2 x 64; and the last norm.
        "print(found.parameters_bytes == 4 * (6400 + 2 * (4 * 4096 + 3 * 8192 + 256) + 128))",
        "True",
    ),
    Change(
        "a command",
        {
            "cli/hello.py": added(
                '"""``mpskit hello``: an example."""\n\n'
                "def add_arguments(parser): parser.add_argument('name')\n"
                "def run(arguments):\n    print('hello', arguments.name)\n    return 0\n"
            ),
            "cli/main.py": before('    "doctor": ', '    "hello": "an example",\n'),
        },
        "import sys; from mpskit.cli.main import main; sys.exit(main(['hello', 'world']))",
        "hello world",
    ),
    Change(
        "a pytest fixture",
        {
            "testing/plugin.py": before(
                "@pytest.fixture\ndef mpskit_device(",
                "@pytest.fixture\ndef mpskit_new() -> int:\n    return 7\n\n\n",
            )
        },
        "import pathlib, sys, pytest\n"
        "pathlib.Path('test_it.py').write_text('def test_it(mpskit_new): assert mpskit_new == 7')\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'test_it.py']))",
        "1 passed",
    ),
)


# Their code imports torch or a trainer and traces a model, twice: several seconds each. The other
# changes are made in every run, one of them with torch.
SLOW = {
    "memory that an operator takes on MPS",
    "a family of transformers' models",
    "an optimizer of torch",
    "an operator that MPS lacks",
    "a pytest fixture",
}


def _run(source: Path, change: Change, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a change's code on the copy of the package under ``source``."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("PYTORCH_")}
    environ = {**own, **change.environ, "PYTHONPATH": str(source)}
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"import mpskit\nassert mpskit.__file__.startswith({str(source)!r})\n{change.code}",
        ],
        capture_output=True,
        text=True,
        env=environ,
        cwd=folder,
        timeout=280,
        check=False,
    )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(one, id=one.name, marks=pytest.mark.full if one.name in SLOW else ())
        for one in CHANGES
    ],
)
def test_the_change_works_in_its_files_alone(change, tmp_path):
    copy, folder = tmp_path / "src", tmp_path / "work"
    folder.mkdir()
    shutil.copytree(SRC, copy / "mpskit")
    without = _run(copy, change, folder)
    assert change.shows not in without.stdout, "it is there without the change"
    for name, edit in change.edits.items():
        path = copy / "mpskit" / name
        path.write_text(edit(path.read_text("utf-8") if path.exists() else ""), "utf-8")
    done = _run(copy, change, folder)
    if too_old := re.search(r"^.*needs torch .* or newer;.*$", done.stderr, re.MULTILINE):
        pytest.skip(too_old[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert change.shows in done.stdout, done.stdout + done.stderr


def _table() -> dict[str, list[str]]:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:an?|memory) .*?) \| (.*?) \|$", page, re.MULTILINE)
    return {name: re.findall(r"`(.*?)`", files) for name, files in rows}


def test_the_page_names_the_same_files():
    assert {change.name: list(change.edits) for change in CHANGES} == _table()
