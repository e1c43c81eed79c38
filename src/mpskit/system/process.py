"""Processes: their memory, the programs that hold most, and bounded child processes.

A process's memory is its footprint. macOS: ``phys_footprint``, the figure of Activity Monitor,
which counts memory mapped for the GPU; the resident size does not. It is read through
``proc_pid_rusage`` of libSystem, with the layout of ``<sys/resource.h>`` (``struct
rusage_info_v0``) and ``<libproc.h>``; this was written from the headers and not run on a Mac.
Linux: the resident size less shared pages (``/proc/PID/statm``), close to psutil's USS and much
cheaper to read. Windows: the private bytes. Elsewhere: the resident size.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from mpskit._base.signals import deferred_signals
from mpskit._base.sizes import MIB, format_bytes
from mpskit._base.values import Value
from mpskit.system.privacy import program_name

if TYPE_CHECKING:
    import subprocess

__all__ = [
    "Finished",
    "Helper",
    "MemoryUser",
    "footprint_bytes",
    "footprint_of",
    "largest_users",
    "output_of",
    "phys_footprint_in",
    "run_bounded",
]

_RUSAGE_INFO_V0 = 0
_UUID_BYTES = 16
# After the uuid come 64-bit counters; the eighth is ri_phys_footprint.
_COUNTERS = 10
_FOOTPRINT_COUNTER = 7

_MOST_OUTPUT = MIB
# How long a helper may take to end when it is told to, before it is killed.
_STOP_S = 2.0


def footprint_bytes(pid: int | None = None) -> int | None:
    """Return the memory of a process (this one by default); None if access is denied."""
    import psutil

    try:
        if sys.platform == "darwin":
            return _phys_footprint(pid or os.getpid())
        return footprint_of(psutil.Process(pid).memory_info())
    except Exception:  # noqa: BLE001 - the process ended, denies access, or /proc is malformed
        return None


def footprint_of(info: Any) -> int:
    """Return the footprint from psutil's ``memory_info()``, whose fields differ by system."""
    private = getattr(info, "private", None)
    return int(private if private is not None else max(0, info.rss - getattr(info, "shared", 0)))


def _phys_footprint(pid: int) -> int | None:
    import ctypes

    size = _UUID_BYTES + _COUNTERS * 8
    # The kernel writes as much as the flavour has; the extra room allows for a larger layout.
    buffer = ctypes.create_string_buffer(4 * size)
    library = ctypes.CDLL("/usr/lib/libSystem.B.dylib")
    failed = library.proc_pid_rusage(ctypes.c_int(pid), _RUSAGE_INFO_V0, ctypes.byref(buffer))
    return None if failed else phys_footprint_in(buffer.raw)


def phys_footprint_in(raw: bytes) -> int:
    """Return ``ri_phys_footprint`` from a ``struct rusage_info_v0`` as the kernel fills it."""
    start = _UUID_BYTES + _FOOTPRINT_COUNTER * 8
    return int.from_bytes(raw[start : start + 8], sys.byteorder)


class MemoryUser(Value):
    """A program and the memory that all its processes hold together.

    Attributes:
        name: the executable's name, without its path or arguments.
        resident_bytes: the sum of the resident sizes; shared pages count once per process.
        processes: how many processes have that name.
    """

    name: str
    resident_bytes: int
    processes: int

    def __str__(self) -> str:
        return f"{self.name} {format_bytes(self.resident_bytes)}"


def largest_users(count: int = 5) -> tuple[MemoryUser, ...]:
    """Return the programs, other than this process, that hold the most memory.

    Processes that deny access or end meanwhile are left out. Only names are kept: no path, no user,
    no arguments.
    """
    held: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for process in _others():
        info = process.info
        name, size = program_name(info.get("exe"), info.get("name")), _resident(info)
        if name and size:
            held[name] += size
            number[name] += 1
    return tuple(
        MemoryUser(name=name, resident_bytes=size, processes=number[name])
        for name, size in held.most_common(count)
    )


def _others() -> list[Any]:
    import psutil

    try:
        # Unreadable fields are None, because process_iter handles AccessDenied itself.
        found = list(psutil.process_iter(["name", "exe", "memory_info"]))
    except Exception:  # noqa: BLE001 - listing programs must not hide the error it explains
        return []
    return [process for process in found if process.pid != os.getpid()]


def _resident(info: dict[str, Any]) -> int:
    return int(getattr(info.get("memory_info"), "rss", 0))


class Finished(NamedTuple):
    """How a child process ended: its return code as :mod:`subprocess` has it, and its output."""

    returncode: int
    stdout: str
    stderr: str


def run_bounded(
    command: Sequence[str],
    *,
    seconds: float,
    environ: Mapping[str, str] | None = None,
    own_session: bool = True,
) -> Finished:
    """Run a child process to its end, without input, with limits on time and output.

    The first MiB of each stream is kept and the rest discarded; bytes that are not UTF-8 are
    replaced. Whatever ends the wait, even Ctrl-C, also ends the child.

    Args:
        command: the program and its arguments.
        seconds: the time after which the child and its descendants are killed.
        environ: its environment variables; None for this process's own.
        own_session: start it in a session of its own, so that its descendants can be killed with
            it and a Ctrl-C at the terminal does not reach it. Without, a program that is given by
            its whole path is started by ``posix_spawn`` on a Mac, with no fork of this process.

    Raises:
        TimeoutError: it took longer than ``seconds``.
        OSError: it cannot be started.
    """
    import subprocess  # here and below: most users of this module start no process

    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        close_fds=own_session,
        start_new_session=own_session,
    )
    streams: list[_Stream] = []
    end = time.monotonic() + seconds
    try:
        streams += [_Stream(pipe) for pipe in (child.stdout, child.stderr) if pipe is not None]
        code = child.wait(seconds)
        for stream in streams:
            # A descendant that the child left behind may still hold the pipe.
            stream.join(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{command[0]} took longer than {seconds:g} s") from None
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"its output cannot be read ({error})") from None
    finally:
        if child.poll() is None or any(stream.is_alive() for stream in streams):
            _kill(child, own_session=own_session)
            for stream in streams:
                stream.join(_STOP_S)
    stdout, stderr = (bytes(stream.kept).decode("utf-8", "replace") for stream in streams)
    return Finished(code, stdout, stderr)


class _Stream(threading.Thread):
    """Reads a child's output as it arrives, because a full pipe would block the child."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(daemon=True, name="mpskit-child-output")
        self.kept = bytearray()
        self._pipe = pipe
        self.start()

    def run(self) -> None:
        with self._pipe:
            while chunk := os.read(self._pipe.fileno(), 65536):
                self.kept += chunk[: _MOST_OUTPUT - len(self.kept)]


def _kill(child: subprocess.Popen[bytes], *, own_session: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if own_session and hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


def output_of(
    command: Sequence[str], *, seconds: float, environ: Mapping[str, str] | None = None
) -> str | None:
    """Return a program's stripped output; None if it fails in any way."""
    try:
        done = run_bounded(command, seconds=seconds, environ=environ, own_session=False)
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()


class Helper:
    """A program that runs beside this process, in a session of its own, until it is stopped.

    Its own session keeps Ctrl-C from it, because the computation that it serves may survive one.

    Args:
        command: the program and its arguments.
        started: gets the helper before it runs, so that no interrupt can lose it.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], started: list[Helper]) -> None:
        import subprocess

        self._process: subprocess.Popen[str] | None = None
        started.append(self)
        with deferred_signals():
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether it is still running."""
        return self._process is not None and self._process.poll() is None

    def says(self, line: str, *, within: float) -> bool:
        """Wait for its first line; a program that ends without one has failed."""
        import select

        pipe = self._process.stdout if self._process is not None else None
        if pipe is None:
            return False
        ready, _, _ = select.select([pipe], [], [], within)
        return bool(ready) and pipe.readline().strip() == line

    def stop(self) -> None:
        """End it and its descendants; it may have ended already."""
        import subprocess

        if self._process is None:
            return
        with self._process as process:  # closes the pipe, and waits
            for order in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is not None:
                    return
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, order)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_S)
