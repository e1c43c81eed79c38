"""Runs a script or a module as the main program of this process, inside a rehearsal."""

from __future__ import annotations

import contextlib
import os
import runpy
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpskit._base.arguments import shown
from mpskit._base.user_code import is_own
from mpskit.errors import ArgumentError
from mpskit.rehearsal import rehearse
from mpskit.rehearsal.children import Reports, environment, is_launcher
from mpskit.rehearsal.result import Finding
from mpskit.simulation.children import TorchFinder, looks_like
from mpskit.system.command import exit_code, run_command

if TYPE_CHECKING:
    from mpskit.host import Machine
    from mpskit.rehearsal.result import Rehearsal
    from mpskit.rehearsal.run import RehearsalRun

__all__ = ["rehearse_script"]


def rehearse_script(
    words: Sequence[str], machines: Sequence[Machine], **options: Any
) -> Rehearsal | None:
    """Run a program in a rehearsal that begins as it imports torch, and return the report.

    What the program raises is printed and becomes a finding.

    Args:
        words: a ``.py`` file, ``-m`` and a module, or a program that starts Python (torchrun), then
            its arguments.
        machines: as for ``rehearse``.
        options: of ``rehearse``.

    Returns:
        None where the program imported no torch.

    Raises:
        ArgumentError: there is no such file or program, or it is no Python that can be read.
    """
    if is_launcher(words) or _is_program(words[0]):
        return _rehearse_program(words, machines, **options)
    program = _program(words)
    entered: list[RehearsalRun] = []

    def enter() -> None:
        looks.undo()
        run = rehearse(list(machines), **options)
        run.__enter__()
        entered.append(run)

    looks = looks_like(machines[0])
    finder = TorchFinder(enter)
    sys.meta_path.insert(0, finder)
    try:
        if "torch" in sys.modules:
            sys.meta_path.remove(finder)
            enter()
        with _as_main(words):
            _run(program, entered)
    finally:
        looks.undo()
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
    return entered[0].report if entered else None


def _is_program(word: str) -> bool:
    return not word.startswith("-") and not word.endswith(".py") and shutil.which(word) is not None


def _rehearse_program(
    words: Sequence[str],
    machines: Sequence[Machine],
    *,
    fallback: bool | None = None,
    stepped: Any = None,  # noqa: ARG001 - other processes step
    **options: Any,
) -> Rehearsal | None:
    """Run a program whose Python processes rehearse, and return the report of the first rank.

    Raises:
        ArgumentError: it cannot be started.
    """
    command = [sys.executable, *words] if words[0] == "-m" else list(words)
    reports = Reports()
    try:
        variables = environment(machines, reports.folder, fallback=fallback, **options)
        code = exit_code(run_command(command, os.environ | variables))
        report, number = reports.best(None)
    except OSError as error:
        raise ArgumentError(f"cannot run {words[0]!r}: {error.strerror}", given=words) from None
    finally:
        reports.close()
    if report is None:
        return None
    if code and report.runs:
        text = f"{words[0]} ended with exit code {code}"
        failed = Finding(kind="error", severity="stops", op="exit", text=text)
        report = report.model_copy(update={"findings": (failed, *report.findings)})
    return report.model_copy(update={"processes": number})


def _run(program: Callable[[], object], entered: list[RehearsalRun]) -> None:
    """Run the program and leave the rehearsal, whatever ends it."""
    error: BaseException | None = None
    try:
        program()
    except BaseException as raised:  # noqa: BLE001 - the script's own; the report tells it
        error = raised
    if entered:
        entered[0].__exit__(None if error is None else type(error), error, None)
    if isinstance(error, Exception):
        _print_error(error)
    elif isinstance(error, SystemExit) and isinstance(error.code, str):
        print(error.code, file=sys.stderr)


def _print_error(error: Exception) -> None:
    """Print a script's error with the frames that lead into its own code and out of it."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if is_own(frame.filename)), len(frames))
    print("Traceback (most recent call last):", file=sys.stderr)
    print("".join(traceback.format_list(frames[first:])), end="", file=sys.stderr)
    print("".join(traceback.format_exception_only(error)), end="", file=sys.stderr)


def _program(words: Sequence[str]) -> Callable[[], object]:
    """Return what runs the program.

    Raises:
        ArgumentError: it cannot be run.
    """
    name = words[0]
    if name == "-m":
        if len(words) < 2:
            raise ArgumentError("-m needs the name of a module", given=list(words))
        return lambda: runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    path = Path(name)
    if not path.is_file():
        what = "no such file" if path.suffix == ".py" else "no such file, program, or -m MODULE"
        raise ArgumentError(f"cannot rehearse {shown(name)}: {what}", given=name)
    try:
        compile(path.read_bytes(), name, "exec")
    except (SyntaxError, ValueError) as error:
        raise ArgumentError(f"cannot rehearse {shown(name)}: {error}", given=name) from error
    return lambda: runpy.run_path(str(path), run_name="__main__")


@contextlib.contextmanager
def _as_main(words: Sequence[str]) -> Iterator[None]:
    """Let the process look as if Python had been started with the program."""
    argv, path = sys.argv, sys.path[:]
    module = words[0] == "-m"
    sys.argv = [words[1], *words[2:]] if module else list(words)
    sys.path.insert(0, str(Path.cwd() if module else Path(words[0]).resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
