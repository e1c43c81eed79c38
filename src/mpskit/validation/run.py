"""Runs the checks, each in a process of its own: one that hangs or dies costs only itself."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

from mpskit._base.arguments import check_names, check_seconds
from mpskit.allocator.watermarks import FALLBACK
from mpskit.backends.memory import as_device, backend
from mpskit.device import get_optimal_device
from mpskit.errors import DeviceUnavailableError
from mpskit.host import detect_host
from mpskit.system.machine import replaced_readings
from mpskit.system.privacy import scrub
from mpskit.system.process import run_bounded
from mpskit.validation.checks import CHECKS
from mpskit.validation.report import Finding, Outcome, Validation

__all__ = ["run_check", "validate"]

_MARK = "mpskit-findings:"
_CHILD = "import sys; from mpskit.validation.run import child; child(*sys.argv[1:])"
_SECONDS = 60.0
# Three dozen reproductions, four at a time.
_LONGER = {"known-issues": 4.0}


def validate(
    device: str | None = None,
    *,
    checks: Sequence[str] | None = None,
    seconds: float = _SECONDS,
    processes: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Validation:
    """Compare what mpskit says of this machine with what the machine does.

    Args:
        device: None takes the one that :func:`mpskit.get_optimal_device` chooses.
        checks: the names of some; None runs all (:data:`mpskit.validation.checks.CHECKS`).
        seconds: the most that one check may take; the known bugs together four times that.
        processes: run each check in a process of its own, which an error in a driver may end.
            False runs them here.
        progress: is told which check comes next.

    Raises:
        ArgumentError: no check has that name, or ``seconds`` is not above 0.
        ArgumentTypeError: an argument has the wrong type.
        DeviceUnavailableError: the device is not on this machine.
    """
    import torch

    check_seconds("seconds", seconds)
    chosen = (
        tuple(CHECKS) if checks is None else check_names("checks", checks, CHECKS, what="check")
    )
    name = str(get_optimal_device().device if device is None else as_device(device))
    if not backend(name).is_available():
        raise DeviceUnavailableError(
            f"this machine has no {name}: `mpskit doctor` says why", given=device
        )
    start = time.monotonic()
    findings: list[Finding] = []
    for check in chosen:
        progress(check)
        run = _in_process if processes else run_check
        findings += run(check, name, seconds * _LONGER.get(check, 1.0))
    return Validation(
        machine=detect_host().summary,
        device=name,
        torch_version=str(torch.__version__),
        mpskit_version=version("mpskit"),
        simulated=replaced_readings() is not None,
        seconds=time.monotonic() - start,
        findings=tuple(findings),
    )


def run_check(check: str, device: str, seconds: float = _SECONDS) -> list[Finding]:  # noqa: ARG001
    """Run a check in this process; whatever it raises becomes a finding."""
    try:
        return list(CHECKS[check](device))
    except Exception as error:  # noqa: BLE001 - one broken check must not hide the others
        return [_not_tried(check, f"{type(error).__name__}: {error}")]


def child(check: str, device: str) -> None:
    """Run a check and print its findings: what the child process does."""
    findings = [finding.model_dump(mode="json") for finding in run_check(check, device)]
    print(f"{_MARK}{json.dumps(findings)}")


def _in_process(check: str, device: str, seconds: float) -> list[Finding]:
    command = [sys.executable, "-P", "-c", _CHILD, check, device]
    try:
        ended = run_bounded(command, seconds=seconds, environ={**os.environ, FALLBACK: "0"})
    except TimeoutError:
        return [_not_tried(check, f"no answer within {seconds:g} s")]
    except OSError as error:
        return [_not_tried(check, f"no process could be started ({error.strerror})")]
    lines = [line for line in ended.stdout.splitlines() if line.startswith(_MARK)]
    try:
        found = json.loads(lines[-1].removeprefix(_MARK))
        return [Finding.model_validate(one) for one in found]
    except (IndexError, ValueError):
        last = ended.stderr.strip().splitlines()[-1:] or [f"exit code {ended.returncode}"]
        return [_not_tried(check, f"its process ended without an answer: {last[0][:200]}")]


def _not_tried(check: str, why: str) -> Finding:
    return Finding(check=check, claim="the check", outcome=Outcome.NOT_TRIED, found=scrub(why))
