"""The kernel's values, from a stand-in for the C function."""

import sys

from mpskit.system.sysctl import read_sysctls


class Kernel:
    """The C function, as ctypes calls it: first for the size, then for the value."""

    values = {
        b"hw.memsize": (8 * 1024**3).to_bytes(8, sys.byteorder),
        b"hw.model": b"MacBookAir10,1\0",
        b"hw.optional.arm64": (1).to_bytes(4, sys.byteorder),
    }

    def sysctlbyname(self, name, buffer, size, *_):
        value = self.values.get(name)
        if value is None:
            return -1
        if buffer is not None:
            buffer[: len(value)] = value
        size._obj.value = len(value)
        return 0


def test_sysctl_values(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: Kernel())
    texts = ("hw.model", "hw.unknown")
    assert read_sysctls(texts, ("hw.memsize", "hw.optional.arm64", "hw.unknown")) == {
        "hw.memsize": str(8 * 1024**3),
        "hw.model": "MacBookAir10,1",
        "hw.optional.arm64": "1",
    }


def test_a_system_without_the_function_has_no_values(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    assert read_sysctls(("hw.model",), ("hw.memsize",)) == {}
