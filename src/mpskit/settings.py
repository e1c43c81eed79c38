"""The ``MPSKIT_*`` variables: the only file that reads them, and a strict one.

An argument wins over a variable, and a variable over the default. A wrong value is an error
that lists the right ones; it is never guessed at. ``docs/settings.md`` has the whole list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpskit._base.arguments import shown
from mpskit.backends.kinds import NAMES, kind_of
from mpskit.errors import SettingsError

__all__ = [
    "POLICIES",
    "POLICY",
    "SIMULATE",
    "Settings",
    "fingerprint",
    "read_settings",
    "simulated",
]

POLICIES = ("auto", "conservative")
SIMULATE = "MPSKIT_SIMULATE"
POLICY = "MPSKIT_POLICY"
# Those that change a decision; the last two are the launcher's (torchrun), not ours.
_DECISIVE = ("MPSKIT_DEVICE", POLICY, "MPSKIT_DISABLE_MPS", "LOCAL_RANK", "WORLD_SIZE")
_NAMES = (
    "MPSKIT_DEVICE",
    POLICY,
    "MPSKIT_DISABLE_MPS",
    "MPSKIT_NO_CACHE",
    "MPSKIT_CACHE_DIR",
    SIMULATE,
)
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")
# As torch reads it: ASCII digits without a leading zero.
_DEVICE = re.compile(rf"({'|'.join(NAMES)})(?::(0|[1-9][0-9]{{0,3}}))?")
_DEVICE_HELP = f"{', '.join(NAMES)}, or one of several as cuda:N"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the variables say; None where one is not set.

    Attributes:
        device: the device's name, lower case.
        policy: ``"auto"``, ``"conservative"`` or an order of device types.
        disable_mps: MPS must not be used.
        no_cache: the cache folder must not be touched.
        cache_dir: where the cache lives.
        local_rank: the process's rank on this machine, from the launcher.
        world_size: how many processes it started in all; None if it says nothing sensible.
    """

    device: str | None = None
    policy: str | tuple[str, ...] | None = None
    disable_mps: bool = False
    no_cache: bool = False
    cache_dir: Path | None = None
    local_rank: int | None = None
    world_size: int | None = None


# CPython's os.environ encodes and decodes at each look-up, and raises inside for an absent name:
# nearly 1 us a variable. The dictionary behind it has the same answers as the system takes them.
_RAW: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_encode: Callable[[str], Any] = getattr(os.environ, "encodekey", str)
_RAW_DECISIVE = tuple(_encode(name) for name in _DECISIVE)


def fingerprint() -> tuple[object, ...]:
    """Return the raw value of every variable that can change a decision: a cache key."""
    return tuple(map(_RAW.get, _RAW_DECISIVE))


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Parse the variables.

    Raises:
        SettingsError: one has a wrong value, or a name that is nearly right; the message lists
            the right ones.
    """
    _check_names(environ)
    return Settings(
        device=_device(environ),
        policy=_policy(environ),
        disable_mps=_flag(environ, "MPSKIT_DISABLE_MPS"),
        no_cache=_flag(environ, "MPSKIT_NO_CACHE"),
        cache_dir=_folder(environ, "MPSKIT_CACHE_DIR"),
        local_rank=_rank(environ),
        world_size=_world_size(environ),
    )


def _check_names(environ: Mapping[str, str]) -> None:
    """Refuse a name that is nearly one of ours, and a machine that no parent left.

    What is nothing like ours is left alone: it may be a later version's.
    """
    for name in environ:
        if name.startswith("MPSKIT_") and name not in _NAMES:
            from difflib import get_close_matches

            near = get_close_matches(name, _NAMES, n=1, cutoff=0.85)
            if near:
                right = f"{near[0]}, or unset it: mpskit has no variable {name}"
                raise _wrong(name, environ[name], right)
    if not environ.get(SIMULATE, "{").lstrip().startswith("{"):
        right = "`mpskit simulate MACHINE -- SCRIPT`, which sets it for the script"
        raise _wrong(SIMULATE, environ[SIMULATE], right)


def simulated(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return what a simulating parent left for this process, or None; simulation/children.py."""
    return environ.get(SIMULATE) or None


def parse_policy(text: str) -> str | tuple[str, ...] | None:
    """Return a policy's name, an order of device types, or None if it is neither."""
    parts = tuple(part.strip().lower() for part in text.split(","))
    if len(parts) == 1 and parts[0] in POLICIES:
        return parts[0]
    known = all(_DEVICE.fullmatch(part) and ":" not in part for part in parts)
    return parts if known and len(set(parts)) == len(parts) else None


def _wrong(name: str, text: str, right: str) -> SettingsError:
    return SettingsError(f"{name}={shown(text)} is not understood: use {right}", given=text)


def _flag(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name, "").strip().lower()
    if text not in _TRUE + _FALSE:
        raise _wrong(name, environ[name], "1, true, yes or on; or 0, false, no or off")
    return text in _TRUE


def _folder(environ: Mapping[str, str], name: str) -> Path | None:
    text = environ.get(name)
    try:
        return Path(text).expanduser() if text else None
    except RuntimeError:
        raise _wrong(name, str(text), "a folder that can be found, such as /tmp/mpskit") from None


def _device(environ: Mapping[str, str]) -> str | None:
    text = environ.get("MPSKIT_DEVICE", "").strip().lower()
    match = _DEVICE.fullmatch(text)
    if text and (match is None or not _may_have(match[1], match[2])):
        raise _wrong("MPSKIT_DEVICE", environ["MPSKIT_DEVICE"], f"one of {_DEVICE_HELP}")
    return text or None


def _may_have(name: str, index: str | None) -> bool:
    return kind_of(name).numbered or index in (None, "0")


def _policy(environ: Mapping[str, str]) -> str | tuple[str, ...] | None:
    text = environ.get(POLICY, "").strip()
    policy = parse_policy(text) if text else None
    if text and policy is None:
        raise _wrong(POLICY, text, "auto, conservative, or an order such as mps,cuda,cpu")
    return policy


def _rank(environ: Mapping[str, str]) -> int | None:
    text = environ.get("LOCAL_RANK", "").strip()
    if text and not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        raise _wrong("LOCAL_RANK", text, "a whole number from 0, as torchrun sets it")
    return int(text) if text else None


def _world_size(environ: Mapping[str, str]) -> int | None:
    # Only warned of, so that what another launcher means by -1 is no error here.
    text = environ.get("WORLD_SIZE", "").strip()
    return int(text) if re.fullmatch(r"\d{1,6}", text, re.ASCII) else None
