"""Make an environment to test mpskit on another torch: torch_env.py FOLDER TORCH [PACKAGE ...].

TORCH is a version (``2.2.2``) or ``newest``. On Linux PyPI's torch is a CUDA build that asks for
gigabytes of NVIDIA libraries. They are left out here, and where torch links against one, a stub
takes its place whose every function answers "no device" (error 100): torch then loads and says
that CUDA is not available, as it does on a machine without a card. Needs gcc and binutils.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "rich", "expecttest", "pyyaml")
# Built against one numpy: torch 2.2 knows only numpy 1, and these follow it.
NOT_PINNED = {"torch", "numpy", "matplotlib", "scipy", "contourpy", "scikit-learn", "fsspec"}
NO_DEVICE = 100  # cudaErrorNoDevice, CUDA_ERROR_NO_DEVICE
CUDA_NAMES = re.compile(r"^(cu|__cuda|nv|nccl|Nv|cufile|_?ZN?.*(cudnn|nccl|cusparse|nvshmem))")
SYSTEM_FOLDERS = (Path("/lib/x86_64-linux-gnu"), Path("/usr/lib/x86_64-linux-gnu"))


def main() -> None:
    """Make the environment, or leave a finished one as it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("torch")
    parser.add_argument("packages", nargs="*")
    arguments = parser.parse_args()
    python = arguments.folder / "bin" / "python"
    if not python.exists():
        venv.create(arguments.folder, with_pip=True)
    _pip(python, "--upgrade", "pip>=25.1")
    wanted = "torch" if arguments.torch == "newest" else f"torch=={arguments.torch}"
    _pip(python, "--no-deps", "--upgrade", wanted)
    site = Path(_ask(python, "import sysconfig; print(sysconfig.get_paths()['purelib'])"))
    numpy = "numpy<2" if _version(python)[:2] < (2, 3) else "numpy"
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text(_pins(), encoding="utf-8")
        needed = [numpy, "matplotlib", "psutil", "packaging", "pydantic", *_pure_needs(python)]
        _pip(python, "--constraint", str(pins), *needed, *TOOLS, *arguments.packages)
        _pip(python, "--no-deps", "--editable", str(ROOT))
    if sys.platform == "linux":
        _add_stubs(site)
    print(_ask(python, "import torch; print(torch.__version__, torch.cuda.is_available())"))


def _pip(python: Path, *words: str) -> None:
    subprocess.run((python, "-m", "pip", "install", "--quiet", *words), check=True)


def _ask(python: Path, code: str) -> str:
    done = subprocess.run((python, "-c", code), check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _version(python: Path) -> tuple[int, ...]:
    text = _ask(python, "from importlib.metadata import version; print(version('torch'))")
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _pins() -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("==")[0].strip() not in NOT_PINNED]
    return "\n".join(kept)


def _pure_needs(python: Path) -> list[str]:
    """Return what torch's metadata asks for, NVIDIA's libraries and triton left out."""
    code = "from importlib.metadata import requires; print(*(requires('torch') or ()), sep='\\n')"
    lines = [line for line in _ask(python, code).splitlines() if "extra ==" not in line]
    names = [re.split(r"[\s;]", line)[0] for line in lines]
    return [name for name in names if not re.match(r"nvidia|triton|cuda", name)]


def _add_stubs(site: Path) -> None:
    """Build a stub for each library that torch links against and that is nowhere to be found."""
    libraries = sorted((site / "torch" / "lib").glob("*.so*"))
    modules = [*libraries, *(site / "torch").glob("_C*.so")]
    needed = {name for module in modules for name in _needed(module)}
    present = {library.name for library in libraries}
    missing = [n for n in needed - present if not any((f / n).exists() for f in SYSTEM_FOLDERS)]
    if not missing:
        return
    system = [f / n for n in needed - present for f in SYSTEM_FOLDERS if (f / n).exists()]
    undefined, defined = _symbols([*modules, *system])
    names = sorted(name for name in undefined - defined if CUDA_NAMES.match(name))
    versions, symbols_of = _symbol_versions(modules)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "stub.c"
        source.write_text("".join(map(_stub, names)), encoding="utf-8")
        for name in missing:
            script = Path(folder) / "stub.map"
            script.write_text(_version_script(versions.get(name, set()), symbols_of, set(names)))
            options = [f"-Wl,--version-script={script}"] if versions.get(name) else []
            target = site / "torch" / "lib" / name
            command = ["gcc", "-shared", "-fPIC", "-w", str(source), f"-Wl,-soname,{name}"]
            subprocess.run([*command, *options, "-o", str(target)], check=True)


def _needed(module: Path) -> list[str]:
    done = subprocess.run(("readelf", "-dW", module), capture_output=True, text=True, check=True)
    return re.findall(r"NEEDED.*\[(.*?)\]", done.stdout)


def _symbols(modules: list[Path]) -> tuple[set[str], set[str]]:
    undefined: set[str] = set()
    defined: set[str] = set()
    for module in modules:
        command = ("nm", "-D", "--without-symbol-versions", module)
        for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
            words = line.split()
            if len(words) >= 2:
                (undefined if words[-2] in "Uvw" and len(words) == 2 else defined).add(words[-1])
    return undefined, defined


def _symbol_versions(modules: list[Path]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return library -> symbol versions asked of it, and version -> symbols."""
    versions: dict[str, set[str]] = {}
    symbols: dict[str, set[str]] = {}
    for module in modules:
        table = subprocess.run(("readelf", "-VW", module), capture_output=True, text=True).stdout
        library = ""
        for line in table.splitlines():
            if found := re.search(r"Version: 1\s+File: (\S+)\s", line):
                library = found[1]
            elif library and (found := re.search(r"Name: (\S+)\s+Flags", line)):
                versions.setdefault(library, set()).add(found[1])
        command = ("nm", "-D", "--undefined-only", module)
        for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
            if found := re.match(r"\s+[Uw] (\S+?)@+(\S+)", line):
                symbols.setdefault(found[2], set()).add(found[1])
    return versions, symbols


def _version_script(versions: set[str], symbols: dict[str, set[str]], names: set[str]) -> str:
    blocks = []
    for version in sorted(versions):
        exported = "".join(f"{name}; " for name in sorted(symbols.get(version, set()) & names))
        blocks.append(f"{version} {{ global: {exported}}};\n")
    return "".join(blocks)


def _stub(name: str) -> str:
    if name.startswith("__cuda") and "Register" in name and not name.endswith("End"):
        return f"long {name}(void) {{ static char handle[4096]; return (long)handle; }}\n"
    if "String" in name or "ErrorName" in name:
        return f'const char *{name}(void) {{ return "no device"; }}\n'
    return f"int {name}(void) {{ return {NO_DEVICE}; }}\n"


if __name__ == "__main__":
    main()
