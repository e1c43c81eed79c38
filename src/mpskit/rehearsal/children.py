"""Carries a rehearsal into child processes, and collects their reports.

Every Python that a rehearsed script or a launcher (torchrun, ``accelerate launch``) starts is
rehearsed too, with tensors of its own that have no data, and writes its report into a folder of the
first. A launcher itself only sees the simulated Mac. simulation/children.py tells which children
are reached at all.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mpskit.settings import SIMULATE
from mpskit.simulation import children

if TYPE_CHECKING:
    from mpskit.host import Machine
    from mpskit.rehearsal.result import Rehearsal

__all__ = ["Reports", "enter", "environment", "is_launcher", "request_of"]

_LAUNCHERS = frozenset({"torchrun", "accelerate", "accelerate-launch"})
_LAUNCHER_MODULES = frozenset(
    {"torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch"}
)


class Reports:
    """The folder into which children write their reports.

    Args:
        folder: that of the first process; None to make one, which ``close`` removes.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._own = None if folder else tempfile.TemporaryDirectory(prefix="mpskit-reports-")
        self.folder = Path(folder or (self._own.name if self._own else ""))

    def add(self, report: Rehearsal) -> None:
        """Write this process's report."""
        number = os.environ.get("RANK", "0")
        name = f"{number if number.isdecimal() else 0}-{os.getpid()}.json"
        text = report.model_dump_json()
        with contextlib.suppress(OSError):  # the first process has ended already
            (self.folder / name).write_text(text, "utf-8")

    def best(self, own: Rehearsal | None) -> tuple[Rehearsal | None, int]:
        """Return the report that tells most of the training, and of how many processes there are.

        It is this process's own if that stepped an optimizer, else the one of the lowest rank that
        did; without any, the one that allocated most.

        Args:
            own: this process's report, where it has one.
        """
        from mpskit.rehearsal.result import Rehearsal

        ranked: list[tuple[int, Rehearsal]] = []
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                text = path.read_text("utf-8")
                ranked.append((int(path.stem.split("-")[0]), Rehearsal.model_validate_json(text)))
        if own is not None:
            ranked.insert(0, (-1, own))
        if not ranked:
            return None, 0
        best = min(ranked, key=lambda one: (not one[1].steps, not one[1].peak_bytes, one[0]))
        return best[1], len(ranked)

    def close(self) -> None:
        """Remove the folder, if it was made here."""
        if self._own is not None:
            self._own.cleanup()


def request_of(machines: Sequence[Machine], folder: Path, **options: Any) -> dict[str, Any]:
    """Return what a child has to be told beside its machine."""
    listed = [one.model_dump(mode="json", exclude_none=True) for one in machines]
    rehearsal = {"machines": listed, "reports": str(folder), **options}
    return {"room": __name__, "rehearsal": rehearsal}


def environment(
    machines: Sequence[Machine], folder: Path, *, fallback: bool | None, **options: Any
) -> dict[str, str]:
    """Return the variables that rehearse a program's Python processes from their first line on."""
    request = request_of(machines, folder, fallback=fallback, **options)
    return children.environment(machines[0], fallback=fallback, early=True, request=request)


def is_launcher(words: Sequence[str]) -> bool:
    """Return whether a command starts the program proper as a child.

    Args:
        words: of a Python's own command line, or a command to run.
    """
    rest = list(words)
    if rest and Path(rest[0]).name.startswith("python"):
        rest = rest[1:]
    while rest and rest[0].startswith("-") and rest[0] not in {"-m", "-c"}:  # Python's own options
        rest = rest[2 if rest[0] in {"-X", "-W"} else 1 :]
    if rest[:1] == ["-m"]:
        return rest[1:2] != [] and rest[1] in _LAUNCHER_MODULES
    return bool(rest) and Path(rest[0]).name in _LAUNCHERS


def enter(request: dict[str, Any]) -> None:
    """Rehearse the rest of this process, as its parent asked."""
    from mpskit.host import Machine
    from mpskit.rehearsal.run import RehearsalRun
    from mpskit.simulation import simulate

    given = dict(request["rehearsal"])
    machines = [Machine(**one) for one in given.pop("machines")]
    if is_launcher(sys.orig_argv):
        text = os.environ[SIMULATE]
        mac = simulate(machines[0], fallback=given["fallback"])
        mac.__enter__()
        os.environ[SIMULATE] = text
        atexit.register(mac.__exit__, None, None, None)
        return
    reports = Reports(given.pop("reports"))
    run = RehearsalRun(machines, reports=reports, **given)
    run.__enter__()
    errors = _last_error()
    atexit.register(_leave, run, reports, errors)


def _last_error() -> list[BaseException]:
    """Return a list that gets the exception that ends this program."""
    errors: list[BaseException] = []
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        errors.append(error)
        before(kind, error, trace)

    sys.excepthook = hook
    return errors


def _leave(run: Any, reports: Reports, errors: list[BaseException]) -> None:
    error = errors[0] if errors else run.end
    run.__exit__(None if error is None else type(error), error, None)
    if run.report.steps or run.report.peak_bytes or run.report.findings:
        reports.add(run.report)
