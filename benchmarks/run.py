"""Runs every benchmark and writes what they found: python benchmarks/run.py (make bench).

    python benchmarks/run.py [--only NAME ...] [--size tiny|run|full] [--out FOLDER]

Each section runs in a process of its own, one after the other, with one thread. One that fails is
reported, the others still run, and the exit code is 1. FOLDER (default: docs) gets
``benchmarks/results.json``, ``benchmarks.md`` and the pictures. ``--only`` measures these sections
anew and keeps the others' figures if they are of the same machine with the same packages.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report
from report import DOCS, Environment, Failure, Ran, Results
from results import Section, Size

import mpskit

HERE = Path(__file__).parent
# In the order of the page; the script of each. The name is the section's.
SECTIONS = {
    "startup": "bench_startup.py",
    "device_choice": "bench_device_choice.py",
    "estimate": "bench_estimate.py",
    "reference": "bench_reference.py",
    "batch": "bench_batch.py",
    "cache": "bench_cache.py",
    "memory": "bench_memory.py",
    "simulation": "bench_simulation.py",
    "fidelity": "bench_fidelity.py",
    "rehearse": "bench_rehearse.py",
    "loader": "bench_dataloader.py",
}
PACKAGES = (
    "torch",
    "accelerate",
    "lightning",
    "sentence-transformers",
    "transformers",
    "torchinfo",
)
THREADS = 1
_UNCOMPILED = "PYTHONDONTWRITEBYTECODE"
# Far beyond what a section takes, so that one that hangs does not keep the others from running.
PATIENCE_SECONDS = 3600


def main() -> int:
    """Run the sections and write the page; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME")
    parser.add_argument("--size", type=Size, choices=list(Size), default=Size.RUN)
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    names = [name for name in SECTIONS if not options.only or name in options.only]
    found = [measure(name, options.size, f"[{i}/{len(names)}]") for i, name in enumerate(names, 1)]
    results = Results(
        size=options.size,
        environment=environment(),
        ran=tuple(one for one in found if isinstance(one, Ran)),
        failed=tuple(one for one in found if isinstance(one, Failure)),
    )
    if options.only:
        results = merged(results, options.out)
    report.write(results, options.out)
    for failure in results.failed:
        tell(f"{failure.name} failed: {failure.error}")
    return int(bool(results.failed))


def measure(name: str, size: Size, place: str) -> Ran | Failure:
    """Run one section in a process of its own."""
    tell(f"{place} {name} ...")
    commit, started, cpu = commit_now(), time.monotonic(), cpu_of_children()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "section.json"
        command = [sys.executable, str(HERE / SECTIONS[name]), "--size", size, "--json", str(file)]
        error = run_child(command)
        seconds = time.monotonic() - started
        if error is not None:
            tell(f"{place} {name} failed after {seconds:.0f} s")
            return Failure(name=name, error=error)
        section = Section.model_validate_json(file.read_text(encoding="utf-8"))
    tell(f"{place} {name}: {seconds:.0f} s")
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return Ran(
        section=section, seconds=round(seconds, 1), cpu_seconds=round(cpu_of_children() - cpu, 1),
        commit=commit, date=today,
    )  # fmt: skip


def cpu_of_children() -> float:
    """Return the CPU seconds of the children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_child(command: list[str]) -> str | None:
    """Run a command to its end, its stderr on ours; return the last line of an error's."""
    threads = {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    # An installed package has compiled files, so a start-up must not compile the sources each time.
    environ = {name: value for name, value in os.environ.items() if name != _UNCOMPILED}
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, stdout=sys.stderr, stderr=errors, env=environ | threads,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return f"not done after {PATIENCE_SECONDS} s"
        finally:  # also after an interrupt, and with what the child has started
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        errors.seek(0)
        text = errors.read().strip()
    if code == 0:
        return None
    tell(text[-3000:])
    return without_paths(text.splitlines()[-1] if text else f"exit code {code}")


def without_paths(text: str) -> str:
    """Return a message for a public page: no folder of this machine."""
    for folder in (HERE.parent, Path.home(), Path(sys.prefix), Path(tempfile.gettempdir())):
        text = text.replace(str(folder), "...")
    return text.replace("`", "'")[:200]


def merged(new: Results, folder: Path) -> Results:
    """Return the earlier results with these in their place."""
    if not (folder / report.RESULTS).exists():
        return new
    old = report.read(folder)
    if (old.environment, old.size) != (new.environment, new.size):
        tell("the earlier results are of another machine, other packages or sizes: not kept")
        return new
    ran = {one.section.name: one for one in (*old.ran, *new.ran)}
    failed = {one.name: one for one in (*old.failed, *new.failed)}
    for one in new.ran:
        failed.pop(one.section.name, None)
    for one in new.failed:
        ran.pop(one.name, None)
    ordered = [ran[name] for name in SECTIONS if name in ran]
    return new.model_copy(update={"ran": tuple(ordered), "failed": tuple(failed.values())})


def environment() -> Environment:
    """Return what may matter for the figures, and nothing that names the machine's owner."""
    versions, host = {}, mpskit.detect_host()
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return Environment(
        processor=host.cpu_name or platform.processor() or platform.machine(),
        cpus=host.usable_cpus,
        memory_gib=round((host.memory_total_bytes or 0) / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions,
        threads=THREADS,
    )


def commit_now() -> str:
    """Return the short commit of the tree, with a plus if it has changes."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(HERE), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=7", "HEAD")
        return f"{commit}{'+' if git('status', '--porcelain', '-uno') else ''}" or "unknown"
    except OSError:  # no git
        return "unknown"


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
