"""Does MPS really work here: a bounded try in a child process, remembered per machine.

A virtual machine may claim a Metal device whose first allocation fails, hangs, or computes wrong
numbers (actions/runner-images#9918, #11899, #14380). A try in this process could hang it or
freeze the allocator's watermarks, so the work is done in a child that can be killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from mpskit.host import Host
from mpskit.settings import Settings
from mpskit.system.process import run_bounded

__all__ = ["PROBE_SECONDS", "cache_folder", "probe_mps", "remembered_probe"]

PROBE_SECONDS = 20.0
# Raise it when the work below changes: an old verdict then no longer counts.
_REVISION = 1
_OK = "mpskit-probe-ok"
# A convolution, a matrix product and their gradients, against the CPU: what the hosted runners
# got wrong or could not allocate. The tolerance is far above rounding and far below a wrong kernel.
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
        seconds: the child is killed after this long, and that is a failure too.
    """
    try:
        child = run_bounded([sys.executable, "-c", _WORK], seconds=seconds)
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except OSError as error:
        return f"the child process did not start ({error.strerror or type(error).__name__})"
    if child.returncode == 0 and _OK in child.stdout:
        return None
    if child.returncode < 0:
        return f"the child process died of signal {-child.returncode}"
    return _last_line(child.stderr) or f"the child process ended with code {child.returncode}"


def remembered_probe(
    host: Host, torch_version: str, settings: Settings, *, refresh: bool = False
) -> str | None:
    """Return `probe_mps`'s answer, from the cache folder when it has one for this machine.

    A cache that is missing, corrupt or read-only is never an error: the probe then runs again.
    """
    if settings.no_cache:
        return probe_mps()
    path = _path(host, torch_version, settings)
    if path is None:
        return probe_mps()
    found = None if refresh else _read(path)
    if found is not None:
        return found["failure"]
    failure = probe_mps()
    _write(path, failure)
    return failure


def _path(host: Host, torch_version: str, settings: Settings) -> Path | None:
    try:
        return cache_folder(settings) / f"mps-probe-{_key(host, torch_version)}.json"
    except RuntimeError:
        # The user has no home folder (a container's nameless user), and so no cache.
        return None


def cache_folder(settings: Settings) -> Path:
    """Return where mpskit keeps what it remembers; nothing is created.

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


def _key(host: Host, torch_version: str) -> str:
    chip = host.chip.name if host.chip else None
    machine = (host.kind, chip, host.os_version, host.memory_total_bytes, host.metal_device)
    facts = (_REVISION, machine, torch_version, sys.version, sys.prefix)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, str | None] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    good = isinstance(found, dict) and "failure" in found
    return found if good and isinstance(found["failure"], (str, type(None))) else None


def _write(path: Path, failure: str | None) -> None:
    """Write by renaming, so that two processes at once leave a whole file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"failure": failure}, file)
        Path(name).replace(path)
    except OSError:
        # A cache that cannot be written costs the next process a probe, and nothing else.
        return


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
