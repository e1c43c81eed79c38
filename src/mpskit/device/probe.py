"""Whether MPS works here: a probe in a child process with a time limit, cached per machine.

A virtual machine may claim a Metal device whose first allocation fails, hangs, or computes wrong
numbers (actions/runner-images#9918, #11899, #14380). A probe in this process could hang it or
freeze the allocator's watermarks, so a child that can be killed does the work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path

from mpskit._base.files import read_small, write_whole
from mpskit.device.status import ProbeAnswer
from mpskit.host import Host
from mpskit.settings import Settings, read_settings
from mpskit.system.process import run_bounded

__all__ = [
    "PROBE_SECONDS",
    "cache_folder",
    "clear_probes",
    "kept_probes",
    "machine_key",
    "probe_mps",
    "remembered_probe",
]

PROBE_SECONDS = 20.0
# The probe after a time-out may take this many times longer, up to the longest.
_LONGER, _LONGEST_S = 3, 180.0
# Raised whenever the work below changes, so that old verdicts no longer count.
_REVISION = 2
_PREFIX = "mps-probe-"
_OK = "mpskit-probe-ok"
# A convolution, a matrix product and their gradients, against the CPU: what the hosted runners got
# wrong or could not allocate. The tolerance is far above rounding errors and far below a wrong
# kernel's.
_WORK = f"""
import torch
torch.manual_seed(0)
x, w, m = torch.randn(2, 3, 32, 32), torch.randn(8, 3, 3, 3), torch.randn(2048, 64)
def work(device):
    a, b, c = (t.to(device).requires_grad_() for t in (x, w, m))
    y = torch.nn.functional.conv2d(a, b).relu().flatten(1)[:, :2048] @ c
    y.square().mean().backward()
    return [t.detach().cpu() for t in (y, a.grad, b.grad, c.grad)]
for here, there in zip(work("cpu"), work("mps")):
    scale = here.abs().max()
    assert (here - there).abs().max() <= 1e-3 * scale, "numbers differ from the CPU's"
print("{_OK}")
"""


def probe_mps(seconds: float = PROBE_SECONDS) -> str | None:
    """Do real work on MPS in a child; return what failed, or None.

    Args:
        seconds: the time after which the child is killed.

    Raises:
        TimeoutError: the child gave no answer in time; it may hang or merely be slow.
    """
    if not sys.executable:
        return "sys.executable is empty, so no child process can run"
    try:
        # -P: a torch.py in the current folder must not be run.
        child = run_bounded([sys.executable, "-P", "-c", _WORK], seconds=seconds)
    except TimeoutError:
        raise
    except OSError as error:
        return f"the child process did not start ({error.strerror or type(error).__name__})"
    if child.returncode == 0 and _OK in child.stdout:
        return None
    if child.returncode < 0:
        return f"the child process died of signal {-child.returncode}"
    return _last_line(child.stderr) or f"the child process ended with code {child.returncode}"


def remembered_probe(
    host: Host, torch_version: str, settings: Settings, *, refresh: bool = False
) -> ProbeAnswer:
    """Return `probe_mps`'s answer, from the cache folder when it has one for this machine.

    A time-out proves nothing on a slow machine: the next process tries three times as long, and a
    third one three times that. Then it stays "not known" until ``refresh``.

    A cache that is missing, corrupt or read-only is never an error: the probe then runs again.
    """
    path = None if settings.no_cache else _path(host, torch_version, settings)
    found = None if path is None else _read(path)
    if found is not None and not refresh and (found.known or found.waited >= _LONGEST_S):
        return found
    waited = found.waited if found is not None else 0
    answer = _probe(min(_LONGEST_S, waited * _LONGER) or PROBE_SECONDS)
    if path is not None:
        _write(path, answer)
    return answer


def _probe(seconds: float) -> ProbeAnswer:
    try:
        return ProbeAnswer(probe_mps(seconds))
    except TimeoutError:
        return ProbeAnswer(f"no answer within {seconds:g} s", waited=seconds)


def _path(host: Host, torch_version: str, settings: Settings) -> Path | None:
    try:
        return cache_folder(settings) / f"{_PREFIX}{machine_key(host, torch_version)}.json"
    except RuntimeError:
        # The user has no home folder (a container's unnamed user), and so no cache.
        return None


def cache_folder(settings: Settings) -> Path:
    """Return mpskit's cache folder; nothing is created.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if settings.cache_dir is not None:
        return settings.cache_dir
    if sys.platform == "darwin":
        return Path("~/Library/Caches/mpskit").expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "mpskit"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mpskit"


def kept_probes() -> list[ProbeAnswer]:
    """Return every cached verdict, for each torch and machine."""
    return [answer for path in _files() if (answer := _read(path)) is not None]


def clear_probes() -> int:
    """Forget every verdict, and return how many there were."""
    removed = 0
    for path in _files():
        with contextlib.suppress(OSError):
            path.unlink()
            removed += 1
    return removed


def _files() -> list[Path]:
    settings = read_settings()
    try:
        return [] if settings.no_cache else sorted(cache_folder(settings).glob(f"{_PREFIX}*.json"))
    except RuntimeError:
        return []


def machine_key(host: Host, torch_version: str) -> str:
    """Return a hash of this machine, this Python and this torch."""
    chip = host.chip.name if host.chip else None
    machine = (host.kind, chip, host.os_version, host.memory_total_bytes, host.metal_device)
    facts = (_REVISION, machine, torch_version, sys.version, sys.prefix)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _read(path: Path) -> ProbeAnswer | None:
    try:
        found = json.loads(read_small(path) or "")
        failure, waited = found["failure"], float(found.get("waited", 0))
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    good = isinstance(failure, str | None) and 0 <= waited <= _LONGEST_S
    return ProbeAnswer(failure, waited) if good else None


def _write(path: Path, answer: ProbeAnswer) -> None:
    """Cache an answer; if that fails, the next process only probes again."""
    write_whole(path, json.dumps(answer._asdict()))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
