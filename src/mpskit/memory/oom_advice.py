"""What an out-of-memory error means, who holds the memory, and what to do about it."""

from __future__ import annotations

import re
import traceback
from typing import NamedTuple

from mpskit._base.arguments import shown
from mpskit._base.sizes import GIB, MIB, format_bytes
from mpskit._base.values import Value
from mpskit.backends.kinds import MemoryClass, kind_of
from mpskit.errors import ArgumentError
from mpskit.memory.oom import OomFigures, is_oom, parse_oom, text_of
from mpskit.memory.working_set import default_limits
from mpskit.system.process import MemoryUser, largest_users

__all__ = ["OomExplanation", "explain_oom"]

# Closing a program that holds less than this does not help.
_WORTH_CLOSING = 512 * MIB
# If torch's memory is this far below its limit, it was not torch that refused.
_FAR_BELOW = 0.9
# A printed size has two decimals of its unit.
_ROUNDING = 0.006


class _Step(NamedTuple):
    """A piece of advice, and where it applies: training or inference (both if None), by kind."""

    text: str
    phase: str | None = None
    kinds: frozenset[str] = frozenset({"limit", "buffer", "driver", "host", "killed"})


_MEMORY = frozenset({"limit", "driver", "host", "killed"})
_SHM = frozenset({"shm"})
_STEPS = (
    _Step("Give the container more shared memory: --shm-size=8g or --ipc=host.", kinds=_SHM),
    _Step("Use fewer DataLoader workers, or none (num_workers=0).", kinds=_SHM),
    _Step("Use a smaller batch: halve it{retry}."),
    _Step(
        "Accumulate gradients over more steps, so that the effective batch stays what it was.",
        "training",
    ),
    _Step("Shorten the sequences, or the images' sides: attention grows with the square of it."),
    _Step(
        "Turn gradient checkpointing on: activations are computed again instead of kept.",
        "training",
    ),
    _Step(
        "Train LoRA adapters instead of all weights: gradients and optimizer states become tiny.",
        "training",
    ),
    _Step("Run under torch.inference_mode(), which keeps no activations.", "inference"),
    _Step(
        "Work in pieces: decode images in tiles, attend in slices, keep less of the KV cache.",
        "inference",
    ),
    _Step("Load the weights in half precision or quantized.", "inference", _MEMORY),
    _Step("Use a smaller model.", kinds=_MEMORY),
    _Step("Close other programs{users}.", kinds=_MEMORY),
    _Step(
        "Restart this process (a notebook's kernel too), then the computer: this frees leaked "
        "memory.",
        kinds=_MEMORY,
    ),
    _Step(
        'Cap the process, so that it fails with an error that says more: limit_memory("80%").',
        kinds=frozenset({"killed"}),
    ),
    _Step("Use a machine with more memory, or the cloud."),
)
_NOTHING_YET = (
    "Nothing was allocated yet: the GPU of a virtual machine or hosted runner cannot be used. No "
    "batch size helps; use the CPU (MPSKIT_DEVICE=cpu)."
)
_METAL_REFUSED = (
    "It held {} of {}, so Metal refused the memory, not the limit. The GPU of a virtual machine "
    "or hosted runner cannot be used: use the CPU (MPSKIT_DEVICE=cpu). On a Mac of your own other "
    "programs hold the memory."
)
_ABOVE = (
    "The process held {} more than the limit already: Metal's own memory is counted only when "
    "torch asks for more. However small the next allocation, it fails until something is freed."
)
_METALS_OWN = (
    "Metal's own allocations are {:.0%} of it: graphs that are kept for each shape of the input, "
    "their temporaries, and attention's score matrices. Pad inputs or sort them into a few "
    "lengths, use scaled_dot_product_attention instead of eager attention, clear between lengths "
    "(mpskit.empty_cache(), graphs too from torch 2.13), and use a newer torch."
)
# What names in a traceback or a log reveal about the work.
_SIGNS = {
    "training": re.compile(
        r"backward\b|optimizer|\btrain(?:er|ing|_|\b)|zero_grad|loss\b", re.IGNORECASE
    ),
    "inference": re.compile(
        r"inference|generat(?:e|ion)|sampl(?:e|er|ing)\b|\bpredict|diffus|\bdecode|comfy|"
        r"\bno_grad\b|vllm",
        re.IGNORECASE,
    ),
}


class OomExplanation(Value):
    """An out-of-memory error in words.

    Attributes:
        summary: what happened, with the figures.
        holders: who holds the memory, one sentence each.
        steps: what to do, the cheapest first.
        notes: what is special about this error.
        figures: the figures themselves, in bytes.
        users: the largest other programs, which on unified memory take from the GPU too.
    """

    summary: str
    holders: tuple[str, ...]
    steps: tuple[str, ...]
    notes: tuple[str, ...]
    figures: OomFigures
    users: tuple[MemoryUser, ...]

    def __str__(self) -> str:
        lines = [self.summary, *self.notes]
        if self.holders:
            lines += ["Who holds the memory:", *(f"  - {holder}" for holder in self.holders)]
        steps = [f"  {number}. {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([*lines, "What to do, in this order:", *steps])


def explain_oom(exc: BaseException | str, *, gave_up: bool = False) -> OomExplanation:
    """Return what an out-of-memory error means, who holds the memory, and what to do.

    Advice for training is left out if the traceback or the text shows inference, and vice versa.
    This machine's programs are named for an exception only, because a text may come from another
    machine.

    Args:
        exc: the exception, or its text. For an ``OutOfMemory``, the original error is explained.
        gave_up: smaller batches have already failed, down to the smallest.

    Raises:
        ArgumentTypeError: it is neither.
        ArgumentError: it is not about memory.
    """
    figures = parse_oom(exc)
    if figures.backend is None:
        if not is_oom(exc):
            raise ArgumentError(f"this is not about memory: {shown(exc)}", given=exc)
        figures = OomFigures(backend="cpu", kind="host")
    users = () if isinstance(exc, str) else _users()
    return OomExplanation(
        summary=_summary(figures),
        holders=_holders(figures, users),
        steps=_steps(figures, users, _phase(exc), gave_up=gave_up),
        notes=_notes(figures),
        figures=figures,
        users=users,
    )


def _users() -> tuple[MemoryUser, ...]:
    return tuple(user for user in largest_users() if user.resident_bytes >= _WORTH_CLOSING)


def _phase(exc: BaseException | str) -> str | None:
    """Return ``training`` or ``inference`` if the traceback or the text shows which, else None."""
    if isinstance(exc, str):
        text = exc
    else:
        frames = traceback.extract_tb(exc.__traceback__) if exc.__traceback__ else []
        text = "\n".join([*(f"{frame.name}\n{frame.line}" for frame in frames), text_of(exc)])
    found = [phase for phase, sign in _SIGNS.items() if sign.search(text)]
    return found[0] if found else None


def _summary(figures: OomFigures) -> str:
    device = "The GPU" if figures.backend == "gpu" else kind_of(figures.backend or "cpu").title
    wanted = "" if figures.requested is None else f" of {format_bytes(figures.requested)}"
    if figures.kind == "killed":
        return (
            "The system killed the process (SIGKILL), which it mostly does when the machine's "
            "memory runs out; Python cannot say so itself."
        )
    if figures.kind == "shm":
        return "Shared memory (/dev/shm) is full, through which DataLoader workers pass batches."
    if figures.kind == "buffer":
        return f"{device} cannot make one buffer{wanted}: a single tensor is too large."
    if figures.kind == "host":
        return f"The computer has no memory left for an allocation{wanted} on the CPU."
    limit = figures.max_allowed
    held = "" if limit is None else f", and this process may hold {format_bytes(limit)} at most"
    return f"{device} is out of memory: an allocation{wanted} did not fit{held}."


def _holders(figures: OomFigures, users: tuple[MemoryUser, ...]) -> tuple[str, ...]:
    memory = kind_of(figures.backend or "cpu").memory
    unified = memory is MemoryClass.UNIFIED
    kept = "PyTorch's tensors and cache" if unified else "PyTorch's tensors"
    rows = (
        (kept, figures.allocated),
        ("Metal's own allocations for this process (graphs, libraries)", figures.other),
        ("PyTorch's cache, without a tensor in it", figures.cached),
        ("everything else on the device (contexts, libraries, other processes)", _rest(figures)),
    )
    lines = [f"{name}: {format_bytes(size)}" for name, size in rows if size is not None]
    if users and memory is not MemoryClass.OWN:
        lines.append(f"other programs, from the same memory: {_names(users)}")
    return tuple(lines)


def _rest(figures: OomFigures) -> int | None:
    """Return what is on a device with memory of its own besides torch's allocator."""
    parts = (figures.max_allowed, figures.free, figures.allocated, figures.cached)
    known = [part for part in parts if part is not None]
    rest = known[0] - sum(known[1:]) if len(known) == len(parts) else -1
    # A negative remainder means the message reported a per-process cap.
    return rest if rest >= 0 else None


def _names(users: tuple[MemoryUser, ...]) -> str:
    return ", ".join(str(user) for user in users)


def _steps(
    figures: OomFigures, users: tuple[MemoryUser, ...], phase: str | None, *, gave_up: bool
) -> tuple[str, ...]:
    retry = "" if gave_up else ", or let mpskit.run_with_batch_size() find one that fits"
    named = f": {_names(users)}" if users else ""
    return tuple(
        # If the phase is unknown, each step names its own.
        (f"In {step.phase}: " if step.phase and not phase else "")
        + step.text.format(users=named, retry=retry)
        for step in _STEPS
        if figures.kind in step.kinds and step.phase in (None, phase or step.phase)
    )


def _notes(figures: OomFigures) -> tuple[str, ...]:
    notes = list(figures.notes)
    if figures.kind == "buffer":
        notes.append("Split that tensor: freeing other memory does not help.")
    if figures.backend == "mps" and figures.kind == "limit":
        notes += [*_refused(figures), *_above(figures), *_metals_own(figures), _limit(figures)]
    return tuple(notes)


def _held(figures: OomFigures) -> int | None:
    """Return what the process held of an MPS device; None if unknown."""
    if figures.allocated is None:
        return None
    return figures.allocated + (figures.other or 0)


def _refused(figures: OomFigures) -> list[str]:
    """Return a note if the limit was not what refused, as on a virtual machine's GPU."""
    held, limit = _held(figures), figures.max_allowed
    if held == 0:
        return [_NOTHING_YET]
    if held is None or limit is None or held + (figures.requested or 0) > _FAR_BELOW * limit:
        return []
    return [_METAL_REFUSED.format(format_bytes(held), format_bytes(limit))]


def _above(figures: OomFigures) -> list[str]:
    held, limit = _held(figures), figures.max_allowed
    if held is None or limit is None or held <= limit:
        return []
    return [_ABOVE.format(format_bytes(held - limit))]


def _metals_own(figures: OomFigures) -> list[str]:
    held, other = _held(figures), figures.other or 0
    # Below this, every process has as much.
    if not held or other < max(held / 2, GIB):
        return []
    return [_METALS_OWN.format(other / held)]


def _limit(figures: OomFigures) -> str:
    """Explain what PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0, which torch advises, would do."""
    limit, text = figures.max_allowed, "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 is no cure: "
    if limit is None or any(abs(limit - one) <= _ROUNDING * one for one in default_limits()):
        return (
            f"{text}PyTorch's own limit is above the Mac's memory already, and without one macOS "
            "swaps or kills the process."
        )
    return (
        f"{text}without a limit macOS swaps or kills the process. But {format_bytes(limit)} is not "
        "PyTorch's own limit on a Mac of any usual size: a cap seems to be in force "
        "(PYTORCH_MPS_HIGH_WATERMARK_RATIO, torch.mps.set_per_process_memory_fraction, "
        "limit_memory), and a higher one may do."
    )
