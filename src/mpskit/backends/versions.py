"""Features by torch version: one table, so that no other file compares versions.

A row is a feature's name, the first torch that has it, and the first that no longer does. The
versions were read from torch's macOS wheels (2.0.1 to 2.15.0: headers, Python files and strings of
the dylib), not tried on a Mac; a version from an issue has its number beside it.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

from mpskit.errors import UnsupportedTorchError

if TYPE_CHECKING:
    from packaging.version import Version

__all__ = [
    "FEATURES",
    "NEWEST",
    "OLDEST",
    "has",
    "minimum_macos",
    "older",
    "require",
    "too_old_for_mps",
    "torch_version",
    "within",
]

# The newest torch whose wheels were read; assumed where no torch is installed.
NEWEST = "2.15.0"

FEATURES: dict[str, tuple[str, str | None]] = {
    "mps.device_count": ("2.4", None),
    "mps.recommended_max_memory": ("2.5", None),
    "mps.is_available": ("2.5", None),
    "mps.autocast.float16": ("2.5", None),
    "mps.autocast.bfloat16": ("2.6", None),
    "mps.bfloat16": ("2.3", None),
    "mps.bfloat16.any_macos": ("2.9", None),
    "mps.fused_adam": ("2.5", None),
    "mps.grad_scaler": ("2.8", None),
    "amp.grad_scaler": ("2.3", None),  # torch.amp.GradScaler, for any device
    "mps.get_name": ("2.9", None),
    "mps.max_buffer_length": ("2.13", None),
    # torch.accelerator: the names exist from 2.6, its memory calls from 2.9, and they raise
    # "Allocator for mps is not a DeviceAllocator" on MPS until 2.13 (pytorch#186430, #167447).
    "accelerator": ("2.6", None),
    "accelerator.memory": ("2.9", None),
    "accelerator.get_memory_info": ("2.10", None),
    "accelerator.memory.mps": ("2.13", None),
    "mps.graph_cache_cleared": ("2.13", None),  # pytorch#181485
    "mps.shared_storage": ("2.13", None),  # pytorch#175818
    "mps.discrete_gpu": ("2.0", "2.13"),
    "mps.binary_units": ("2.8", None),  # KiB, MiB, GiB in the allocator's texts; KB... before
    "mps.placement_heaps": ("2.14", None),  # pytorch#190438, with the buckets of pytorch#187441
    "mps.pinned_cpu_tensors": ("2.14", None),  # pytorch#181720
    "mps.float8_e4m3fn": ("2.15", None),  # pytorch#194074
    "mps.stream": ("2.15", None),
    "mps.env.prefer_metal": ("2.3", None),
    "mps.env.fast_math": ("2.5", None),
    "mps.env.profile": ("2.1", None),
    "mps.env.disable_prefill_attention": ("2.13", None),
    "mps.env.metal_version": ("2.15", None),
    "mps.knows_macos_26": ("2.11", None),
    "flop_counter.out_val": ("2.4", None),  # the result's name in torch.utils.flop_counter
    # torch.load inside torch.serialization.skip_data: in 2.9.1, not in 2.6.
    "skip_data.load": ("2.9", None),
    "default_device": ("2.3", None),  # torch.get_default_device; it could be set before
    "xpu": ("2.3", None),  # torch.xpu
    # On 2.4.1 figures were up to 3% short, CTC failed and "mps" knew no autocast; 2.5 is not tried.
    "estimate": ("2.6", None),
    "grouped_mm": ("2.10", None),  # torch.nn.functional.grouped_mm, on the CPU as well
    "simulation": ("2.6", None),
    "mps.missing_text.commit": ("2.6", None),
    "mps.distributed_error": ("2.11", None),  # pytorch#173954
    "mps.autocast.attention": ("2.6", None),
    "mps.autocast.conv3d": ("2.9", None),
    "mps.ctc_loss": ("2.14", None),  # native_functions.yaml, _ctc_loss
}

# Features refused as a whole on an older torch -> their name in the error.
_REFUSED = {
    "estimate": "a traced memory estimate",
    "simulation": "a simulated machine",
    "grouped_mm": "an estimate of a model with experts",
}

# The oldest macOS on which MPS works, by the first torch that needs it. 2.5's own message still
# says 12.3, but it needs 13.0 (pytorch#139425).
_MACOS_FLOOR = (("2.15", "15.0"), ("2.9", "14.0"), ("2.5", "13.0"), (None, "12.3"))

# The oldest torch that the package takes: pyproject.toml.
OLDEST = "2.2"


def has(feature: str, torch: str | Version) -> bool:
    """Return whether a torch version has a feature of the table.

    Raises:
        KeyError: the feature is not in the table (a mistake in mpskit, not in its input).
    """
    return within(str(torch), *FEATURES[feature])


def require(feature: str) -> None:
    """Raise if the installed torch is too old for a feature.

    Raises:
        UnsupportedTorchError: naming the feature, the torch it needs, and the one installed.
    """
    version = torch_version()
    if version is None or not has(feature, version):
        found = "none is installed" if version is None else f"{version} is installed"
        raise UnsupportedTorchError(
            f"{_REFUSED[feature]} needs torch {FEATURES[feature][0]} or newer; {found}",
            given=version,
        )


@functools.cache
def within(version: str | None, since: str | None = None, until: str | None = None) -> bool:
    """Return whether a version of torch or macOS is in a row's range.

    A development build counts as its release (2.13.0a0+git1 has 2.13's features as far as anyone
    knows), unless the range itself begins or ends with one. A local build may call itself anything:
    what is not a version counts as newer than any. An unknown version counts as in every range.

    Args:
        version: as ``"2.13.0"``; None for unknown.
        since: the first version in the range; None for no beginning.
        until: the first version after it; None for no end.
    """
    if version is None:
        return True
    first, last = since and _parsed(since), until and _parsed(until)
    found = _parsed(version)
    if found and not any(bound and bound.is_prerelease for bound in (first, last)):
        found = _release(version)
    after = not first or found is None or first <= found
    return after and (not last or (found is not None and found < last))


def minimum_macos(torch: str | Version) -> str:
    """Return the oldest macOS on which that torch's MPS backend works, as ``"14.0"``."""
    return next(macos for since, macos in _MACOS_FLOOR if within(str(torch), since))


def older(version: str | None, than: str) -> bool:
    """Return whether a version is known to be below another; an unknown one is not."""
    return version is not None and within(version, until=than)


def too_old_for_mps(macos: str, torch: str) -> bool:
    """Return whether a torch's MPS needs a later macOS; ``"12"`` may be any 12."""
    whole = macos if "." in macos else f"{macos.strip()}.999"
    return older(whole.strip(), minimum_macos(torch))


def torch_version() -> str | None:
    """Return the installed torch's version without importing torch; None if there is none."""
    module = sys.modules.get("torch")
    version = getattr(module, "__version__", None)
    return str(version) if version is not None else _installed_version()


@functools.cache
def _installed_version() -> str | None:
    from importlib import metadata  # imports a dozen modules, and torch itself is rarely absent

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _parsed(text: str) -> Version | None:
    # Imported here because most decisions compare no version and need not pay for it.
    from packaging.version import Version

    try:
        return Version(text)
    except ValueError:  # packaging's InvalidVersion, or a number of over 4,300 digits
        return None


@functools.cache
def _release(text: str) -> Version:
    from packaging.version import Version

    return Version(Version(text).base_version)
