"""The floors of the house and who may do what: laws.toml, less the violations of known.toml."""

import functools

import laws
import pytest
from source import SRC, Source


@pytest.fixture(scope="module")
def source():
    return Source()


@pytest.fixture(scope="module")
def findings(source):
    """What breaks a law; the source is searched once for each."""
    return functools.cache(lambda law: laws.findings(law, source))


def _lines(found):
    return "".join(f"\n  {where}  {what}" for what, where in sorted(found.items()))


@pytest.mark.parametrize("law", laws.CHECKS)
def test_the_law_holds(law, findings):
    excused = {*laws.allowed(law), *laws.known().get(law, ())}
    broken = {k: v for k, v in findings(law).items() if k not in excused}
    assert not broken, f"{law} (tests/architecture/laws.toml):{_lines(broken)}"


@pytest.mark.parametrize("law", laws.CHECKS)
def test_no_exception_is_left_over(law, findings):
    found, reasons = findings(law), laws.allowed(law)
    assert not reasons.keys() - found.keys(), "remove it from laws.toml"
    assert all(reasons.values()), "an exception needs a reason"


@pytest.mark.parametrize("law", laws.CHECKS)
def test_a_mended_violation_leaves_the_list(law, findings):
    mended = set(laws.known().get(law, ())) - findings(law).keys()
    assert not mended, "python tests/architecture/laws.py --shrink removes them from known.toml"


def test_known_violations_belong_to_laws():
    assert laws.known().keys() <= laws.CHECKS.keys()


def test_every_room_stands_on_one_floor(source):
    listed = [room for floor in laws.LAWS["floors"] for room in floor]
    assert len(set(listed)) == len(listed)
    rooms = {module.room for module in source.modules}
    assert rooms <= set(listed), f"put on a floor of laws.toml: {rooms - set(listed)}"
    assert {room for room in listed if room not in source.names} == set()


BREACHES = {
    "layers": "def f():\n    from mpskit.memory import budget\n",
    "layers-typing": "if TYPE_CHECKING:\n    from mpskit.memory import Budget\n",
    "os": "from subprocess import run\n",
    "torch-backends": "import torch\nx = getattr(torch, 'mps')\n",
    "mpskit-variables": "x = os.environ['MPSKIT_DEVICE']\n",
    "pytorch-variables": "x = os.environ['PYTORCH_MPS_FAST_MATH']\n",
    "versions": "x = version < (2, 13)\n",
    "logger": "import logging\nx = logging.getLogger('y')\n",
    "texts-decide": "x = why in ('use_gpu=False', None)\n",
    "docstrings": "class _Hidden: ...\ndef shown(): ...\n",
    "shown": "raise ValueError(f'no {name!r}', given=name)\n",
    "once.high-watermark": "x = 1.7\n",
    "once.low-watermark": "x = 1.4\n",
    "once.default-macos": "x = '15.6'\n",
    "once.newest-torch": "x = '2.15.0'\n",
    "list.devices": "x = {'cuda': 1, 'mps': 2}\n",
    "list.precisions": "x = ['fp32', 'bf16']\n",
    "list.optimizers": "x = ['adamw', 'sgd']\n",
    "list.policies": "x = 'auto|conservative'\n",
}


@pytest.mark.parametrize("law", laws.CHECKS)
def test_each_law_sees_a_breach(law, tmp_path, monkeypatch):
    """A law that finds nothing anywhere would keep nothing."""
    monkeypatch.setattr("source.SRC", tmp_path)
    files = {"memory/__init__.py": "", "memory/budget.py": ""}
    # A list without a home is broken by the second file that has it.
    files |= {"host/bad.py": BREACHES[law], "host/worse.py": BREACHES[law]}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = laws.findings(law, Source(tmp_path))
    assert [what.partition(":")[0] for what in found] == ["host.bad", "host.worse"]


def test_the_source_is_read_whole(source):
    assert len(source.modules) == len(list(SRC.rglob("*.py"))) > 100
