"""The texts that MPSAllocator raises, by torch version (ATen/mps/MPSAllocator.mm).

Read from the strings of the macOS wheels: ``KB``, ``MB`` and ``GB`` up to 2.7.1, ``KiB``, ``MiB``
and ``GiB`` from 2.8.0; both mean powers of two.
"""

from __future__ import annotations

from mpskit._base.sizes import GIB, KIB, MIB
from mpskit.allocator.watermarks import HIGH
from mpskit.backends.versions import has

__all__ = ["buffer_text", "oom_text", "size_text", "watermark_text"]

_ADVICE = (
    f" Use {HIGH}=0.0 to disable upper limit for memory allocations (may cause system failure)."
)


def size_text(size: int, torch_version: str) -> str:
    """Return a size as that torch prints it: ``"9.07 GiB"``, ``"512 bytes"``.

    A size of exactly one unit is printed in the unit below: ``"1024.00 MiB"``.
    """
    if size <= KIB:
        return f"{size} bytes"
    unit, letter = next(
        ((u, c) for u, c, top in ((KIB, "K", MIB), (MIB, "M", GIB)) if size <= top), (GIB, "G")
    )
    return f"{size / unit:.2f} {letter}{'i' if has('mps.binary_units', torch_version) else ''}B"


def oom_text(
    torch_version: str,
    *,
    allocated: int,
    other: int,
    max_allowed: int | None,
    requested: int,
    pool: str,
) -> str:
    """Return the out-of-memory text; ``max_allowed`` is None where the high ratio is 0."""
    held = f"MPS allocated: {size_text(allocated, torch_version)}"
    held += f", other allocations: {size_text(other, torch_version)}"
    if max_allowed is not None:
        held += f", max allowed: {size_text(max_allowed, torch_version)}"
    wanted = f"Tried to allocate {size_text(requested, torch_version)} on {pool} pool."
    advice = "" if max_allowed is None else _ADVICE
    return f"MPS backend out of memory ({held}). {wanted}{advice}"


def buffer_text(size: int, torch_version: str) -> str:
    """Return the text for one buffer that is too large for Metal."""
    return f"Invalid buffer size: {size_text(size, torch_version)}"


def watermark_text(which: str, ratio: float) -> str:
    """Return the text for a ratio out of range; ``which`` is ``"high"`` or ``"low"``."""
    return f"invalid {which} watermark ratio {ratio:g}"
