import os
import signal
import sys
import threading

import pytest
import torch

import mpskit
from mpskit.errors import ArgumentError, ArgumentTypeError, SimulationError, UnknownMachineError
from mpskit.host import detect_host
from mpskit.simulation import SimulatedMac, active, simulate


def mlp_losses(device, steps=3):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 2))
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(steps):
        x = torch.randn(4, 8).to(device)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {str(p.device) for p in model.parameters()}


def test_cpu_before_mps_inside_cpu_after():
    before = mlp_losses("cpu")
    with simulate("m1-8gb"):
        inside = mlp_losses("mps")
    after = mlp_losses("cpu")
    assert before == after
    assert inside == (before[0], {"mps:0"})


def test_every_patch_is_undone_also_after_an_exception():
    def state():
        return {
            "tensor": {k: id(v) for k, v in vars(torch.Tensor).items()},
            "storage": {k: id(v) for k, v in vars(torch.UntypedStorage).items()},
            "torch": {k: id(v) for k, v in vars(torch).items()},
            "torch._C": {k: id(v) for k, v in vars(torch._C).items()},
            "mps": {k: id(v) for k, v in vars(torch.mps).items()},
            "functional": {k: id(v) for k, v in vars(torch.nn.functional).items()},
            "thread": {k: id(v) for k, v in vars(threading.Thread).items()},
        }

    with simulate("m1-8gb"):
        pass  # what torch imports lazily is imported now
    before = state()
    with pytest.raises(ZeroDivisionError), simulate("m1-8gb"):
        1 / 0
    assert state() == before
    assert torch._C._len_torch_function_stack() == 0
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not torch.backends.mps.is_available()


def accelerator():
    """Return cuda on a build for it, with a card or without."""
    try:
        return torch.accelerator.current_accelerator()
    except RuntimeError:  # 2.6 on a build without any
        return None


def test_availability_inside_and_after():
    before = accelerator()
    assert not torch.backends.mps.is_available()
    with simulate("m1-8gb") as mac:
        assert torch.backends.mps.is_available()
        assert torch.backends.mps.is_built()
        assert torch.mps.device_count() == 1
        assert torch.accelerator.current_accelerator() == torch.device("mps")
        assert mac.host.chip.name == "M1"
    assert not torch.backends.mps.is_available()
    assert accelerator() == before


def test_an_event_may_outlive_its_mac():
    with simulate("m1-8gb"):
        event = torch.mps.Event(enable_timing=True)
        event.record()
    del event  # torch gives an event back here, and pytest fails on what __del__ raises


def test_survivors_become_plain_cpu_tensors():
    with simulate("m1-8gb"):
        x = torch.arange(4.0, device="mps")
        assert x.device == torch.device("mps", 0)
    assert x.device == torch.device("cpu")
    assert torch.equal(x + torch.ones(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_nesting_is_a_clear_error_and_harms_nothing():
    with simulate("m1-8gb"):
        with pytest.raises(SimulationError, match="already inside"), simulate("m2-16gb"):
            pass
        assert torch.ones(1, device="mps").is_mps
    assert torch.ones(1).device.type == "cpu"


def test_decorator_runs_on_a_fresh_machine_each_time():
    @simulate("m1-8gb")
    def peak():
        torch.ones(1024, device="mps")
        return torch.mps.driver_allocated_memory()

    assert peak() == peak() == 8 * 2**20
    assert not torch.backends.mps.is_available()


def test_decorating_a_coroutine_is_refused():
    async def run():
        pass

    with pytest.raises(ArgumentTypeError, match="plain functions"):
        simulate("m1-8gb")(run)


def test_one_object_can_be_entered_again():
    mac = simulate("m1-8gb")
    for _ in range(2):
        with mac:
            assert torch.ones(1, device="mps").is_mps


def test_figures_before_entry_are_an_error():
    with pytest.raises(SimulationError, match="enter the simulated Mac"):
        simulate("m1-8gb").allocated_bytes


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"machine": "m99-3gb"}, UnknownMachineError),
        ({"machine": 3}, ArgumentTypeError),
        ({"rng": "two"}, ArgumentError),
        ({"fallback": "yes"}, ArgumentTypeError),
        ({"macos": "tiger"}, ArgumentError),
    ],
)
def test_bad_arguments(arguments, error):
    with pytest.raises(error):
        mpskit.simulate(**arguments)


def test_default_device_of_mps_is_taken_back():
    with simulate("m1-8gb"):
        torch.set_default_device("mps")
        assert torch.zeros(2).is_mps
    assert torch.zeros(2).device.type == "cpu"


@pytest.mark.parametrize("machine", ["intel-mac-32gb", "rosetta-m2-16gb"])
def test_machines_without_mps(machine):
    with simulate(machine):
        assert not torch.backends.mps.is_available()
        assert torch.backends.mps.is_built()
        with pytest.raises(RuntimeError, match="MPS backend is supported on MacOS"):
            torch.ones(2, device="mps")


def test_hosted_runner_is_available_and_fails_at_the_first_allocation():
    with simulate("github-macos-15-vm"):
        assert torch.backends.mps.is_available()
        with pytest.raises(RuntimeError, match="MPS allocated: 0 bytes, other allocations: 0 byte"):
            torch.ones(2, device="mps")


def test_macos_older_than_torch_needs():
    with simulate("m1-8gb", macos="12.6"):
        assert not torch.backends.mps.is_available()


def test_importing_the_package_does_not_import_torch():
    import subprocess

    code = "import mpskit.simulation, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _interrupted(at):
    """Enter and leave a Mac with Ctrl-C at a line of mpskit; return the lines passed by then."""
    lines = []

    def trace(frame, event, _argument):
        if "mpskit" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        if event == "line":
            lines.append((frame.f_code, frame.f_lineno))
            if len(lines) == at:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    mac = simulate("m1-8gb")
    sys.settrace(trace)
    try:
        with mac:
            pass
    finally:
        sys.settrace(before)
    return lines


def test_an_interrupt_at_any_line_leaves_nothing_behind():
    before = (detect_host(), dict(vars(torch.Tensor)), dict(vars(torch)), dict(os.environ))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _interrupted(0)  # the first one of a process also reads tables
        lines = _interrupted(0)
        total = len(lines)
        # Every line that enters, leaves and defers signals, but where it is too late for anyone:
        # before the first line of `__exit__` has run.
        switching = {
            (line, side): at
            for side, numbered in ((0, reversed([*enumerate(lines, 1)])), (1, enumerate(lines, 1)))
            for at, line in numbered
            if line[0].co_filename.endswith(("lifecycle.py", "signals.py"))
            and line[0] is not SimulatedMac.__exit__.__code__
        }
        for at in {1, 2, 3, *switching.values(), *range(5, total, total // 40)}:
            with pytest.raises(KeyboardInterrupt):
                _interrupted(at)
            after = (detect_host(), dict(vars(torch.Tensor)), dict(vars(torch)), dict(os.environ))
            assert active() is None
            assert after == before, f"line {at} of {total}"
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_mac_that_was_not_entered_cannot_be_left():
    with pytest.raises(SimulationError, match="was not entered"):
        simulate("m1-8gb").__exit__(None, None, None)


def test_no_mac_is_active_on_a_torch_too_old_for_one(monkeypatch):
    monkeypatch.setattr(mpskit.simulation, "torch_version", lambda: "2.5.1")
    assert mpskit.simulation.__getattr__("active")() is None
