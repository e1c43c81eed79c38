"""What a truth value decides in the Python code that reads it, and where that code is.

A step may ask whether numbers are valid, and raise if they are not: the code says which answer
lets it go on. Whatever else a truth value decides is not guessed.
"""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import NamedTuple

import torch

from mpskit._base.user_code import is_own

__all__ = ["answer_without_raise", "frames_from", "frames_of", "reading_frame", "user_line"]

_PACKAGE = str(Path(__file__).parents[2])
# The trace runs the step from this folder: frames above the outermost of these are the caller's.
_TRACE = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
# Calls that write a message and do nothing to a tensor, or end the program.
_MESSAGES = {"print", "warn", "debug", "info", "warning", "error", "critical", "exception", "log"}
_ENDINGS = {"exit", "_exit", "abort"}

_Range = tuple[int, int, int, int]  # line, column, last line, last column


def frames_from(frame: FrameType | None) -> Iterator[tuple[CodeType, int]]:
    """Yield code and line of a frame and of its callers inside the step, innermost first."""
    chain: list[tuple[CodeType, int]] = []
    while frame is not None:
        chain.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    ours = [i for i, (code, _) in enumerate(chain) if code.co_filename.startswith(_TRACE)]
    yield from chain[: ours[-1] if ours else len(chain)]


def frames_of(traceback: TracebackType | None) -> list[tuple[CodeType, int]]:
    """Return code and line of an exception's frames, innermost first."""
    frames: list[tuple[CodeType, int]] = []
    while traceback is not None:
        frames.insert(0, (traceback.tb_frame.f_code, traceback.tb_lineno))
        traceback = traceback.tb_next
    return frames


def user_line(frames: Iterable[tuple[CodeType, int]]) -> str:
    """Return ``file:line`` of the innermost frame in the user's own code.

    Where all of the step is library code, it is the innermost line outside torch; ``""`` where
    there is none either.
    """
    library = ""
    for code, line in frames:
        name = code.co_filename
        if is_own(name):
            return f"{name}:{line}"
        if not name.startswith((_PACKAGE, _TORCH, "<frozen")):
            library = library or f"{name}:{line}"
    return library


def reading_frame(frame: FrameType | None) -> FrameType | None:
    """Return the frame whose instruction reads a value: neither ours nor a function mode's."""
    while frame is not None:
        code = frame.f_code
        ours = code.co_filename.startswith(_PACKAGE)
        if not ours and code.co_name not in {"__torch_function__", "__torch_dispatch__"}:
            return frame
        frame = frame.f_back
    return None


def answer_without_raise(frame: FrameType, *, leave_loops: bool = False) -> bool | None:
    """Return the truth value with which the test that a frame is at does not raise.

    Args:
        frame: the frame whose instruction asks for the truth value.
        leave_loops: also answer tests that only decide whether a loop goes on: it ends.

    Returns:
        None where the truth value decides something else, or where there is no source.
    """
    found = _find_test(frame)
    if found is None:
        return None
    statement, negated = found
    outcome = _wanted(statement, leave_loops)
    return None if outcome is None else outcome != negated


class _Test(NamedTuple):
    statement: ast.stmt
    negated: bool


def _find_test(frame: FrameType) -> _Test | None:
    """Return the statement whose test reads the value, and whether the test negates the value."""
    for place in _places(frame):
        for statement in _statements(frame):
            test = statement.test
            if _covers(test, place):
                negated = _negated(test, place)
                return None if negated is None else _Test(statement, negated)
    return None


def _places(frame: FrameType) -> Iterator[_Range]:
    """Yield where the current instruction stands, and the one before.

    A jump may be given the place of its whole statement; what is before it computed the value.
    """
    units = list(frame.f_code.co_positions())
    current = frame.f_lasti // 2
    for index in (current, current - 1):
        if 0 <= index < len(units):
            line, last, column, end = units[index]
            if line is not None and last is not None and column is not None and end is not None:
                yield line, column, last, end


def _statements(frame: FrameType) -> Sequence[ast.If | ast.While | ast.Assert]:
    """Return the tests of a frame's file, the innermost of nested ones first."""
    lines = linecache.getlines(frame.f_code.co_filename, frame.f_globals)
    return _parsed("".join(lines))


@functools.lru_cache(maxsize=64)
def _parsed(source: str) -> Sequence[ast.If | ast.While | ast.Assert]:
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return ()
    return [node for node in nodes if isinstance(node, ast.If | ast.While | ast.Assert)]


def _covers(node: ast.expr, place: _Range) -> bool:
    if node.end_lineno is None or node.end_col_offset is None:
        return False
    starts = (node.lineno, node.col_offset) <= place[:2]
    return starts and place[2:] <= (node.end_lineno, node.end_col_offset)


def _negated(test: ast.expr, place: _Range) -> bool | None:
    """Return whether a test is the opposite of the value read at a place; None where neither."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _negated(test.operand, place) if _covers(test.operand, place) else None
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        parts = [part for part in test.values if _covers(part, place)]
        return _negated(parts[0], place) if parts else None
    if isinstance(test, ast.Call) and getattr(test.func, "id", "") == "bool" and test.args:
        return False
    whole = (test.lineno, test.col_offset, test.end_lineno, test.end_col_offset)
    return False if place == whole else None


def _wanted(statement: ast.stmt, leave_loops: bool) -> bool | None:
    """Return the outcome of a test that neither raises nor, where asked, stays in a loop."""
    if isinstance(statement, ast.Assert):
        return True
    if isinstance(statement, ast.While):
        return False if leave_loops else None
    assert isinstance(statement, ast.If)  # noqa: S101 - no other statement was looked for
    if _fails(statement.body) and _fails(statement.orelse):
        return None
    if _fails(statement.body) or (not statement.orelse and _only_tells(statement.body)):
        return False
    if _fails(statement.orelse):
        return True
    return _leaving(statement) if leave_loops else None


def _leaving(statement: ast.If) -> bool | None:
    """Return the outcome that ends a loop, or that does nothing."""
    for outcome, block in ((True, statement.body), (False, statement.orelse)):
        if len(block) == 1 and isinstance(block[0], ast.Break | ast.Pass):
            return outcome
    return None


def _fails(block: Sequence[ast.stmt]) -> bool:
    return bool(block) and (isinstance(block[-1], ast.Raise) or _called(block[-1]) in _ENDINGS)


def _only_tells(block: Sequence[ast.stmt]) -> bool:
    return all(_called(statement) in _MESSAGES for statement in block)


def _called(statement: ast.stmt) -> str:
    """Return the name of the function that a statement calls and forgets."""
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return ""
    function = statement.value.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
