"""``mpskit monitor -- python train.py``: run a command, watch and plot its memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpskit._base.sizes import format_bytes
from mpskit.cli.json_output import print_json
from mpskit.cli.output import check_folder, columns, print_wrapped
from mpskit.errors import ArgumentError, MpskitError
from mpskit.memory.monitor import check_interval
from mpskit.memory.timeline import Sample, Timeline, plot_samples, write_csv
from mpskit.system.command import Ended, exit_code, tree_footprint, watch_command
from mpskit.system.gpu import gpu_percent
from mpskit.system.memory import system_memory

__all__ = ["add_arguments", "run"]

_PLOT = "mpskit-monitor.png"
_EXAMPLES = """examples:
  mpskit monitor -- python train.py --epochs 1
  mpskit monitor --csv memory.csv --no-plot -- make bench

The exit code is the command's own."""
_NOT_FOUND, _NOT_RUNNABLE, _KILLED = 127, 126, 137  # the exit codes of a shell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.usage = "mpskit monitor [options] -- COMMAND [ARGUMENTS]"
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--interval", type=float, default=0.5, metavar="S", help="seconds between samples (0.5)"
    )
    parser.add_argument("--plot", metavar="PNG", default=_PLOT, help=f"the picture ({_PLOT})")
    parser.add_argument("--no-plot", action="store_true", help="draw no picture")
    parser.add_argument(
        "--live", action="store_true", help="show the figures meanwhile; for a silent command"
    )
    parser.add_argument("--csv", metavar="FILE", help="also write the samples")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON at the end")
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="what to run"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code (128 + N if signal N ended it)."""
    command = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not command:
        raise ArgumentError("no command: write mpskit monitor -- python train.py", given=command)
    interval = check_interval(arguments.interval)
    for path in (arguments.csv, None if arguments.no_plot else arguments.plot):
        if path is not None:
            check_folder(path)
    # The command writes to the same terminal, so that a live line is a wish and no default.
    live, timeline = arguments.live and sys.stderr.isatty(), Timeline()

    def look(pid: int, seconds: float) -> None:
        sample = _sample(pid, seconds)
        timeline.add(sample)
        if live:
            _show(sample, timeline)

    try:
        ended = watch_command(command, interval, look)
    except OSError as error:
        print(f"mpskit monitor: {command[0]}: {error.strerror}", file=sys.stderr)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_RUNNABLE
    if live:
        print("\r\x1b[K", end="", file=sys.stderr)
    _report(ended, timeline, arguments)
    return exit_code(ended.returncode)


def _sample(pid: int, seconds: float) -> Sample:
    return Sample(
        seconds=seconds,
        footprint_bytes=tree_footprint(pid),
        available_bytes=system_memory().available,
        gpu_percent=gpu_percent(),
    )


def _show(sample: Sample, timeline: Timeline) -> None:
    """Overwrite one line on the terminal; a log file has none."""
    room = (columns(sys.stderr) or 80) - 1
    print(f"\r\x1b[K{_line(sample, timeline)[:room]}", end="", file=sys.stderr, flush=True)


def _line(sample: Sample, timeline: Timeline) -> str:
    peak = timeline.peak("footprint_bytes")
    parts = [f"{sample.seconds:6.1f} s"]
    if sample.footprint_bytes is not None and peak is not None:
        parts.append(f"{format_bytes(sample.footprint_bytes)} (peak {format_bytes(peak)})")
    if sample.available_bytes is not None:
        parts.append(f"{format_bytes(sample.available_bytes)} available")
    if sample.gpu_percent is not None:
        parts.append(f"GPU {sample.gpu_percent:.0f}%")
    return "  ".join(parts)


def _report(ended: Ended, timeline: Timeline, arguments: argparse.Namespace) -> None:
    """Write what was asked for, then the summary; neither changes the exit code."""
    samples = timeline.samples()
    seen = any(sample.footprint_bytes for sample in samples)
    plot = arguments.plot if seen and not arguments.no_plot else None
    title = "Memory of the command's processes"
    summary = _summary(ended, timeline) | {
        "plot": _written(
            plot, lambda path: plot_samples(samples, path, title, ram_bytes=system_memory().total)
        ),
        "csv": _written(arguments.csv, lambda path: write_csv(samples, path)),
    }
    if arguments.json:
        print_json("monitor", summary)
    else:
        print_wrapped(_sentence(summary), error=True)
    if summary["exit_code"] == _KILLED:
        print_wrapped(_killed(summary), error=True)


def _written(path: str | None, write: Callable[[str], object]) -> str | None:
    """Write a file and return its path; None if none is wanted or writing failed."""
    try:
        return None if path is None else str(write(path))
    except MpskitError as error:
        print(f"mpskit monitor: {error}", file=sys.stderr)
        return None


def _summary(ended: Ended, timeline: Timeline) -> dict[str, Any]:
    samples = timeline.samples()
    available = [sample.available_bytes for sample in samples if sample.available_bytes is not None]
    return {
        "exit_code": exit_code(ended.returncode),
        "seconds": round(ended.seconds, 3),
        "samples": len(samples),
        "peak_footprint_bytes": timeline.peak("footprint_bytes"),
        "least_available_bytes": min(available, default=None),
    }


def _sentence(summary: dict[str, Any]) -> str:
    peak = summary["peak_footprint_bytes"]
    size = format_bytes(peak) if peak else "unknown (the command ended before a sample)"
    files = [Path(summary[kind]).name for kind in ("plot", "csv") if summary[kind]]
    text = f"mpskit monitor: peak memory {size} in {summary['seconds']:.1f} s"
    return f"{text}; wrote {', '.join(files)}" if files else text


def _killed(summary: dict[str, Any]) -> str:
    least = summary["least_available_bytes"]
    seen = "" if least is None else f"; at the least {format_bytes(least)} of RAM were available"
    return (
        "mpskit monitor: the command was killed (SIGKILL), which the system mostly does when the "
        f"machine's memory runs out{seen}. mpskit.explain_oom('exit code 137') says what to do."
    )
