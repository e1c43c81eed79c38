"""Child processes are on the same machine, and after the exit they are not."""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

import mpskit
from mpskit.errors import SettingsError
from mpskit.host import Machine, find_machine
from mpskit.settings import SIMULATE
from mpskit.simulation import children

SAY = "import torch, platform; print(torch.zeros(1, device='mps').device, platform.mac_ver()[0])"


def python(code, **kwargs):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        **kwargs,
    )


def tell(queue):
    import torch

    queue.put(str(torch.zeros(1, device="mps").device))


def test_the_variables_are_there_inside_only():
    before = dict(os.environ)
    with mpskit.simulate("m1-8gb", macos="14.5", rng="separate"):
        request = json.loads(os.environ[SIMULATE])
        assert request["machine"]["macos"] == "14.5"
        assert (request["rng"], request["early"]) == ("separate", False)
        assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == children.SITE
    assert dict(os.environ) == before


def test_pythonpath_keeps_what_it_had(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/a", children.SITE, "/b"]))
    variables = children.environment(find_machine("m1-8gb"))
    assert variables["PYTHONPATH"].split(os.pathsep) == [children.SITE, "/a", "/b"]


def test_a_subprocess_is_inside_and_runs_the_users_own_sitecustomize(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.mine = __name__")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with mpskit.simulate("m1-8gb", macos="15.3"):
        done = python(SAY + "\nimport sys; print(sys.mine)")
    assert done.stdout.split() == ["mps:0", "15.3", "sitecustomize"], done.stderr


def test_a_child_that_imports_no_torch_imports_no_pydantic():
    with mpskit.simulate("m1-8gb"):
        done = python("import sys; print({'torch', 'pydantic', 'psutil'} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("how", ["spawn", "forkserver", "fork"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_are_inside(how):
    context = multiprocessing.get_context(how)
    with mpskit.simulate("m1-8gb"):
        queue = context.Queue()
        worker = context.Process(target=tell, args=(queue,))
        worker.start()
        assert queue.get(timeout=280) == "mps:0"
        worker.join(timeout=60)
    assert worker.exitcode == 0


def test_a_forkserver_does_not_remember():
    context = multiprocessing.get_context("forkserver")
    with mpskit.simulate("m1-8gb"):
        worker = context.Process(target=os.getcwd)
        worker.start()
        worker.join(timeout=60)
    worker = context.Process(target=not_simulated)
    worker.start()
    worker.join(timeout=60)
    assert worker.exitcode == 0


def not_simulated():
    assert SIMULATE not in os.environ


def test_an_early_child_is_inside_before_its_first_line():
    machine = Machine(chip="M4 Pro", ram_gib=24)
    code = "import platform, sys; print(platform.machine(), 'torch' in sys.modules)"
    done = python(code, env=os.environ | children.environment(machine, early=True))
    assert done.stdout.split() == ["arm64", "False"], done.stderr


def test_a_name_is_enough():
    variables = children.environment(find_machine("m1-8gb")) | {SIMULATE: "m2-8gb"}
    code = SAY + "\nimport mpskit; print(mpskit.detect_host().chip.name)"
    done = python(code, env=os.environ | variables)
    assert done.stdout.split() == ["mps:0", "15.6", "M2"], done.stderr


@pytest.mark.parametrize("text", ["{", "{}", '{"machine": ', '{"early": true}'])
def test_a_wrong_request_is_a_settings_error(text):
    with pytest.raises(SettingsError) as caught:
        children._parsed(text)
    assert caught.value.given == text


def test_an_unknown_machine_stops_an_early_child():
    variables = children.environment(find_machine("m1-8gb"), early=True)
    request = json.loads(variables[SIMULATE]) | {"machine": "m1-9gb"}
    done = python("print('ran')", env=os.environ | variables | {SIMULATE: json.dumps(request)})
    assert done.returncode == 2
    assert "no machine is called 'm1-9gb'" in done.stderr
    assert "ran" not in done.stdout


@pytest.mark.parametrize("text", ["{", '{"machine": "m1-9gb"}', "junk", '{"machine": {"chip": 3}}'])
def test_a_broken_request_lets_no_child_run_outside(text):
    variables = children.environment(find_machine("m1-8gb")) | {SIMULATE: text}
    done = python("import torch; print('ran')", env=os.environ | variables)
    assert done.returncode == 2
    assert done.stderr.startswith("mpskit simulate: ")
    assert "ran" not in done.stdout


def test_torch_is_left_to_an_early_child():
    code = (
        "import mpskit; mpskit.configure_environment(fallback=True); import torch\n"
        "print(torch.ones(3, device='mps').mode().values.device)"
    )
    variables = children.environment(find_machine("m1-8gb"), early=True)
    done = python(code, env=os.environ | variables)
    assert done.stdout.strip() == "mps:0", done.stderr


@pytest.fixture
def torch_found(monkeypatch):
    """Stand-ins for Python's finders, of which the second has torch, and the names that ran."""
    ran = []
    spec = ModuleSpec("torch", SimpleNamespace(exec_module=lambda module: ran.append("torch")))
    finders = [
        SimpleNamespace(find_spec=lambda *_: None),
        SimpleNamespace(find_spec=lambda name, *_: spec if name == "torch" else None),
    ]
    monkeypatch.setattr(sys, "meta_path", [*finders, *sys.meta_path])
    return ran


def import_torch():
    """Find torch by the first finder, as ``import torch`` does, and run its module."""
    spec = sys.meta_path[0].find_spec("torch")
    spec.loader.exec_module(ModuleType("torch"))


def test_the_mac_is_entered_once_and_after_torch_has_run(torch_found):
    before = list(sys.meta_path)
    finder = children.TorchFinder(lambda: torch_found.append("entered"))
    sys.meta_path.insert(0, finder)
    assert finder.find_spec("json") is None
    assert sys.meta_path == [finder, *before]
    import_torch()
    assert torch_found == ["torch", "entered"]
    assert sys.meta_path == before


def test_a_child_without_torch_runs_as_it_is(monkeypatch):
    finder = children.TorchFinder(pytest.fail)
    monkeypatch.setattr(sys, "meta_path", [finder, SimpleNamespace(find_spec=lambda *_: None)])
    assert finder.find_spec("torch") is None


def test_a_python_of_no_mac_is_left_alone(monkeypatch):
    monkeypatch.delenv(SIMULATE, raising=False)
    before = (list(sys.meta_path), mpskit.__doc__)
    children.at_startup()
    assert (sys.meta_path, mpskit.__doc__) == before


@pytest.mark.parametrize("early", [True, False])
def test_an_early_child_looks_like_a_mac_until_it_is_one(torch_found, monkeypatch, early):
    seen = []
    variables = children.environment(find_machine("m1-8gb"), early=early)
    monkeypatch.setenv(SIMULATE, variables[SIMULATE])
    monkeypatch.setattr(mpskit, "__doc__", mpskit.__doc__)
    monkeypatch.setattr(
        children, "_enter", lambda request: seen.append((request["early"], platform.machine()))
    )
    here = platform.machine()
    children.at_startup()
    assert platform.machine() == ("arm64" if early else here)
    assert "PYTEST_DONT_REWRITE" in mpskit.__doc__
    import_torch()
    assert seen == [(early, here)]
    assert torch_found == ["torch"]


@pytest.fixture
def ended(monkeypatch):
    """The end of the process, as an exception."""

    def end(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", end)


@pytest.mark.parametrize(
    ("error", "traced"), [(SettingsError("no Mac"), False), (ValueError("no Mac"), True)]
)
def test_a_child_that_cannot_enter_ends(torch_found, monkeypatch, ended, capsys, error, traced):
    def enter(_):
        raise error

    monkeypatch.setenv(SIMULATE, "m1-8gb")
    monkeypatch.setattr(mpskit, "__doc__", mpskit.__doc__)
    monkeypatch.setattr(children, "_enter", enter)
    children.at_startup()
    with pytest.raises(SystemExit) as end:
        import_torch()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.endswith("mpskit simulate: no Mac\n")
    assert ("Traceback" in said) is traced


def test_a_room_of_its_own_gets_the_whole_request(monkeypatch):
    told = []
    monkeypatch.setitem(sys.modules, "a_room", SimpleNamespace(enter=told.append))
    request = children._parsed('{"machine": "m1-8gb", "room": "a_room", "more": 3}')
    children._enter(request)
    assert told == [request]


def test_a_child_is_on_its_mac_until_it_ends(monkeypatch):
    at_exit = []
    monkeypatch.setattr(children.atexit, "register", lambda *call: at_exit.append(call))
    children._enter(children._parsed("m2-8gb"))
    try:
        assert mpskit.detect_host().chip.name == "M2"
    finally:
        ((leave, *arguments),) = at_exit
        leave(*arguments)
    assert mpskit.detect_host().chip is None or not mpskit.detect_host().is_mac
