"""Turns writing aside: what a script writes, moves or removes happens in a temporary folder.

The folder lies over the file system: what was written there is found at its own path by ``open``,
``os.stat`` and ``os.listdir``, and everything else is read where it is. Tensors are written without
their data, so that a checkpoint of any size takes no room. What does not go through Python's
``open`` and ``os``, ``torch.save`` or safetensors is not caught: other programs, and libraries in C
that open files themselves (SQLite, HDF5, torch.jit).
"""

# pathlib calls the very functions that are replaced here.
# ruff: noqa: PTH100, PTH102, PTH112, PTH113, PTH119, PTH120, PTH123, PTH206

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mpskit.backends.versions import has
from mpskit.dispatch.patches import Patches
from mpskit.rehearsal.findings import Findings, Kind, spot_of

__all__ = ["Aside"]

# What Python's tempfile makes is nobody's file, and sockets in it have to be where they say.
_OWN = re.compile(r"(tmp|pymp-)[a-z0-9_]{8}")
_DEVICES = ("/dev/", "/proc/", "/sys/")
_READERS = ("stat", "lstat", "access", "chmod", "utime")
_LISTERS = ("listdir", "scandir")
_REMOVERS = ("remove", "unlink", "rmdir")
_MOVERS = ("rename", "replace")


class Aside:
    """One rehearsal's folder.

    Args:
        findings: are told each line that writes.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._folder = Path(tempfile.mkdtemp(prefix="mpskit-rehearsal-"))
        self._temporary = str(Path(tempfile.gettempdir()).resolve())
        self._gone: set[str] = set()
        self._exists = os.path.lexists
        self._stat = os.stat

    def install(self, patches: Patches) -> None:
        """Turn writing aside until ``patches`` are undone; the folder is removed then."""
        patches.on_exit(functools.partial(shutil.rmtree, self._folder, ignore_errors=True))
        for owner in (builtins, io):
            patches.derive(owner, "open", self._opener)
        patches.derive(os, "open", self._low_opener)
        for name in (*_READERS, *_LISTERS):
            patches.derive(os, name, self._listing if name in _LISTERS else self._reading)
        patches.derive(os, "mkdir", self._making)
        for name in _REMOVERS:
            patches.derive(os, name, self._removing)
        for name in _MOVERS:
            patches.derive(os, name, self._moving)
        patches.derive(shutil, "rmtree", self._removing)
        patches.derive(torch, "save", self._saving)
        patches.derive(torch, "load", self._loading)
        if importlib.util.find_spec("safetensors") is not None:
            module: Any = importlib.import_module("safetensors.torch")
            patches.derive(module, "_flatten", lambda _: _described)
            patches.derive(module, "serialize_file", self._safe)

    def _key(self, path: Any) -> str | None:
        """Return the absolute path; None for what is not turned aside."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        full = os.path.abspath(os.fsdecode(path))
        if full.startswith((*_DEVICES, str(self._folder))):
            return None
        if full.startswith(self._temporary + os.sep):
            first = full[len(self._temporary) + 1 :].split(os.sep)[0]
            if _OWN.fullmatch(first):
                return None
        return full

    def _there(self, full: str) -> str:
        return str(self._folder) + full

    def _seen(self, path: Any) -> Any:
        """Return where a path is read: in the folder, if it was written there."""
        full = self._key(path)
        if full is None:
            return path
        there = self._there(full)
        if self._exists(there):
            return there
        return there if self._is_gone(full) else path

    def _is_gone(self, full: str) -> bool:
        return any(full == one or full.startswith(one + os.sep) for one in self._gone)

    def _is_real(self, full: str) -> bool:
        """Return whether something is at a path itself, that the script has not removed."""
        try:
            self._stat(full)
        except OSError:
            return False
        return not self._is_gone(full)

    def _written(self, path: Any, *, keep: bool) -> Any:
        """Return where a path is written, with what was there if that is to be kept."""
        full = self._key(path)
        if full is None:
            return path
        there = self._there(full)
        folder = os.path.dirname(there)
        if not os.path.isdir(folder):
            if not os.path.isdir(os.path.dirname(full)):
                return path  # no such folder: the error is the script's own
            self._make(folder)
        if keep and not self._exists(there) and os.path.isfile(full) and not self._is_gone(full):
            shutil.copyfile(full, there)
        spot = spot_of(sys._getframe(2))
        name = os.path.basename(full)
        text = f"{name} is not written: what the script writes went to a temporary folder"
        self._findings.add(Kind.WRITE, "", text, "--write lets it through", spot=spot)
        return there

    def _make(self, folder: str) -> None:
        missing = []
        while not self._exists(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for one in reversed(missing):
            os.mkdir(one)

    def _opener(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def open_aside(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wxa+"):
                file = self._written(file, keep="w" not in mode)
            else:
                file = self._seen(file)
            return call(file, mode, *args, **kwargs)

        return open_aside

    def _low_opener(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def open_aside(path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("dir_fd") is None:
                writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                path = self._written(path, keep=True) if writes else self._seen(path)
            return call(path, flags, *args, **kwargs)

        return open_aside

    def _reading(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def read(path: Any, *args: Any, **kwargs: Any) -> Any:
            path = path if kwargs.get("dir_fd") is not None else self._seen(path)
            return call(path, *args, **kwargs)

        return read

    def _listing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """List the folder where it was written to; its older files are listed by name only."""

        def listed(path: Any = ".", *args: Any) -> Any:
            full = self._key(path)
            there = None if full is None else self._there(full)
            if there is None or full is None or not self._exists(there):
                return call(path, *args)
            if call.__name__ == "listdir" and self._is_real(full):
                return sorted({*call(full), *call(there)})
            return call(there, *args)

        return listed

    def _making(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def make(path: Any, *args: Any, **kwargs: Any) -> Any:
            full = self._key(path)
            if full is None or kwargs.get("dir_fd") is not None:
                return call(path, *args, **kwargs)
            seen = self._seen(path)
            if self._exists(seen):
                return call(seen, *args, **kwargs)  # raises FileExistsError
            return call(self._written(path, keep=False), *args, **kwargs)

        return make

    def _removing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def remove(path: Any, *args: Any, **kwargs: Any) -> Any:
            full = self._key(path)
            if full is None or kwargs.get("dir_fd") is not None:
                return call(path, *args, **kwargs)
            there = self._there(full)
            if not self._exists(self._seen(path)):
                return call(there, *args, **kwargs)  # raises FileNotFoundError
            self._gone.add(full)
            return call(there, *args, **kwargs) if self._exists(there) else None

        return remove

    def _moving(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def move(source: Any, target: Any, **kwargs: Any) -> Any:
            full = self._key(source)
            if full is None and self._key(target) is None:
                return call(source, target, **kwargs)
            there = self._written(source, keep=True)
            result = call(there, self._written(target, keep=False), **kwargs)
            if full is not None and self._exists(full):
                self._gone.add(full)
            return result

        return move

    def _saving(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("_use_new_zipfile_serialization", None)  # the other form holds the data
            with torch.serialization.skip_data():
                return call(obj, self._written(f, keep=False), *args, **kwargs)

        return save

    def _loading(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def load(f: Any, *args: Any, **kwargs: Any) -> Any:
            seen = self._seen(f)
            if seen is f or not has("skip_data.load", torch.__version__):
                return call(seen, *args, **kwargs)
            with torch.serialization.skip_data():
                return call(seen, *args, **kwargs)

        return load

    def _safe(self, call: Callable[..., Any]) -> Callable[..., Any]:  # noqa: ARG002
        def serialize_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
            _write_header(self._written(filename, keep=False), tensors, metadata)

        return serialize_file


# torch dtype -> its name in a safetensors header
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def _described(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[str, list[int], int]]:
    """Flatten as an older safetensors does, without the bytes: name, shape and size."""
    return {
        name: (_NAMES.get(one.dtype, "F32"), list(one.shape), one.numel() * one.itemsize)
        for name, one in tensors.items()
    }


def _write_header(path: Any, tensors: dict[str, Any], metadata: Any) -> None:
    """Write a safetensors file whose data are a hole.

    Args:
        path: of the file.
        tensors: by name, as `_described` made them, or a newer safetensors' own specs.
        metadata: of the file.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, one in tensors.items():
        given = one if isinstance(one, tuple) else (one.dtype, list(one.shape), one.data_len)
        dtype, shape, size = given
        start, end = end, end + size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
