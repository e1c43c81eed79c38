"""The checks of ``mpskit doctor``, each run on its own, so that a failing one hides no other."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mpskit._base.values import Value
from mpskit.errors import MpskitError
from mpskit.system.privacy import scrub

__all__ = ["Check", "Findings", "gather"]

_Mark = Literal["ok", "note", "warn", "fail"]


class Check(Value):
    """The result of one check.

    Attributes:
        name: what was checked.
        mark: ``ok``, ``note``, ``warn`` or ``fail``.
        seen: what was found.
        why: why it matters, for a warning or a failure.
        fix: one command or line that fixes it.
    """

    name: str
    mark: _Mark
    seen: str
    why: str | None = None
    fix: str | None = None


class Findings:
    """The results in order, and the facts behind them for ``--json``."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.facts: dict[str, Any] = {}

    def add(self, name: str, mark: _Mark, seen: str, **rest: str | None) -> None:
        """Add one result, with the names of user, host and home folder removed from its texts."""
        cleaned = {key: scrub(text) if text else None for key, text in rest.items()}
        self.checks.append(Check(name=name, mark=mark, seen=scrub(seen), **cleaned))

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return any(check.mark == "fail" for check in self.checks)


def gather() -> Findings:
    """Run all checks; an exception in one becomes a failed check and stops no other."""
    found = Findings()
    for look in (_machine, _torch, _backends, _device, _memory, _environment, _bugs, _power):
        _survive(look, found)
    return found


def _survive(look: Callable[[Findings], None], found: Findings) -> None:
    name = look.__name__.strip("_")
    try:
        look(found)
    except MpskitError as error:
        if any(check.seen == scrub(str(error)) for check in found.checks):
            return  # a wrong variable fails every check that reads it
        why, fix = "mpskit cannot work until this is fixed", _unset(str(error))
        found.add(name, "fail", str(error), why=why, fix=fix)
    except Exception as error:  # noqa: BLE001 - any machine must get a report
        seen = f"{type(error).__name__}: {error}"
        why = "this is a bug of mpskit or a broken installation"
        found.add(name, "fail", seen, why=why, fix=_reinstall("mpskit"))


def _unset(message: str) -> str | None:
    """Return the command that unsets the variable with which the message begins, if one does."""
    variable = re.match(r"[A-Z_]{4,}(?==)", message)
    return f"unset {variable[0]}" if variable else None


def _reinstall(package: str) -> str:
    return f"{Path(sys.executable).name} -m pip install --force-reinstall {package}"


def _machine(found: Findings) -> None:
    from mpskit.host import detect_host

    host = detect_host()
    found.facts["machine"] = host.model_dump(mode="json")
    found.add("machine", "ok", str(host))


def _torch(found: Findings) -> None:
    from mpskit.backends.facts import torch_trouble

    python = f"Python {platform.python_version()}"
    trouble = torch_trouble()
    if trouble is not None:
        why = "mpskit chooses devices for torch"
        found.add("torch", "fail", f"{python}; {trouble}", why=why, fix=_reinstall("torch"))
        return
    import torch

    version = str(torch.__version__)
    found.facts["torch"] = {"version": version, "python": platform.python_version()}
    found.add("torch", "ok", f"torch {version} on {python}")


def _backends(found: Findings) -> None:
    """An unusable backend is a note with its fix, not a failure."""
    from mpskit.backends.facts import read_torch
    from mpskit.device.choice import backend_statuses
    from mpskit.host import detect_host
    from mpskit.settings import read_settings

    if "torch" not in found.facts:
        return
    statuses = backend_statuses(detect_host(), read_torch(), read_settings())
    found.facts["backends"] = [status.model_dump(mode="json") for status in statuses]
    for status in statuses:
        built = f"built {_yes(status.built)}"
        built += f" for {status.label}" if status.built and status.device != "cpu" else ""
        words = f"{built}, available {_yes(status.available)}"
        words += f", usable {_yes(status.usable)}"
        if status.usable:
            found.add(status.device, "ok", words)
        else:
            found.add(status.device, "note", f"{words}: {status.reason}", fix=status.fix)


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _device(found: Findings) -> None:
    from mpskit.device import get_optimal_device

    if "torch" not in found.facts:
        return
    import warnings

    with warnings.catch_warnings():
        # The report has the same facts among the backends; stderr need not repeat them.
        warnings.simplefilter("ignore")
        device, info = get_optimal_device()
    found.facts["device"] = info.model_dump(mode="json")
    found.add("device", "ok", f"{device}: {info.reason}")
    for line in info.advice:
        found.add("advice", "note", line)
    _device_test(found, str(device))


def _device_test(found: Findings, device: str) -> None:
    """Run forward, backward and an optimizer step: PASS, or FAIL with the exception."""
    from mpskit.cli.device_test import train_one_step

    failure = train_one_step(device)
    found.facts["device_test"] = {"device": device, "passed": failure is None, "error": failure}
    if failure is None:
        found.add("device test", "ok", f"PASS: forward, backward and optimizer step on {device}")
    else:
        why, fix = "training on this device will fail the same way", "export MPSKIT_DEVICE=cpu"
        found.add("device test", "fail", f"FAIL: {failure}", why=why, fix=fix)


def _memory(found: Findings) -> None:
    from mpskit.memory import memory_budget

    if "torch" not in found.facts:
        return
    device = found.facts.get("device", {}).get("device", "cpu")
    budget = memory_budget(device, live=False)
    found.facts["memory"] = budget.model_dump(mode="json")
    found.add("memory", "ok", str(budget))


def _environment(found: Findings) -> None:
    from mpskit.environment import current_environment

    report = current_environment()
    found.facts["environment"] = report.model_dump(mode="json")
    for variable in report.variables:
        seen = f"{variable.name}={variable.value}"
        if variable.problem:
            found.add(variable.name, "fail", seen, why=variable.problem, fix=variable.fix)
        else:
            found.add(variable.name, "note", f"{seen}: {variable.meaning}")


def _bugs(found: Findings) -> None:
    from mpskit import known_issues

    # What cannot be used has no bugs to watch for, unless this Mac has yet to get a torch.
    backends = found.facts.get("backends", ())
    usable = any(one["device"] == "mps" and one["usable"] for one in backends)
    issues = known_issues() if usable else ()
    found.facts["known_issues"] = [issue.model_dump(mode="json") for issue in issues]
    for issue in issues:
        mark: _Mark = "warn" if issue.severity == "serious" else "note"
        found.add("known bug", mark, f"{issue.summary} ({issue.source})")


def _power(found: Findings) -> None:
    from mpskit.host.power import PowerState, power_state

    state = power_state()
    found.facts["power"] = state.model_dump(mode="json")
    if state != PowerState():
        found.add("power", "ok", str(state))
    for concern in state.concerns:
        found.add("power", "warn", concern)
