"""Removes private data from reports, which may end up in a public issue: :func:`scrub`.

Names of the user and the machine, home folders, e-mail addresses and likely secrets are replaced.
Every string in every report of the command line passes through here.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from typing import Any

from mpskit.backends.kinds import NAMES

__all__ = ["program_name", "scrub", "scrub_all"]

# Accounts and hosts of these names identify nobody, and the words occur in reports. Short ones
# would mangle any sentence.
_NOBODY = frozenset(
    set(NAMES)
    | {"root", "user", "admin", "runner", "ubuntu", "docker", "linux", "macos", "mac", "darwin"}
    | {"windows", "python", "torch", "mpskit", "gpu", "memory"}
    | {"machine", "device", "localhost", "am", "an", "as", "at", "be", "by", "ci", "do", "go"}
    | {"gb", "if", "in", "is", "it", "kb", "mb", "me", "ms", "my", "no", "of", "on", "or", "os"}
    | {"py", "so", "to", "up", "us", "we"}
)
_OTHER_HOMES = re.compile(r"((?:/home|/Users|\\Users)[/\\])(?!\(name\))[^/\\\s:'\"]+")
_MAIL = re.compile(r"[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[A-Za-z]{2,24}\b")
# The prefixes of Hugging Face, GitHub, OpenAI and Anthropic, Slack, AWS and Weights & Biases.
_SECRET = re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|sk-|xox[abprs]-|AKIA|wandb_v1_)[\w-]{6,}")
_ASSIGNED = re.compile(
    r"(?i)((?:token|secret|password|passwd|api_?key)['\"]?\s{0,3}[=:]\s{0,3}|--(?:token|password)\s)\S+"
)
_MOST_NAME = 60


def scrub(text: str) -> str:
    """Return a str without names of user and host, home folders, addresses and secrets."""
    for home in _homes():
        # "/home/al" is no part of "/home/alice".
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    for name in _names():
        word = rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])"
        text = re.sub(word, "(name)", text, flags=re.IGNORECASE if len(name) > 2 else 0)
    text = _OTHER_HOMES.sub(r"\1(name)", text)
    text = _ASSIGNED.sub(r"\1(secret)", _SECRET.sub("(secret)", text))
    return _MAIL.sub("(address)", text)


def scrub_all(value: Any) -> Any:
    """Return a tree of dicts and lists with every string in it scrubbed; keys are kept."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {key: scrub_all(item) for key, item in value.items()}
    return [scrub_all(item) for item in value] if isinstance(value, list | tuple) else value


def program_name(executable: object, name: object) -> str:
    """Return a program's name for a report: its executable's, without folder or arguments.

    A process can set its name to anything, users, hosts and arguments included. It is used only if
    the executable cannot be read, and only up to the first blank or punctuation.

    Args:
        executable: its path; None or empty where it is not known.
        name: the process's own name.
    """
    if isinstance(executable, str) and executable:
        found = re.split(r"[/\\]", executable)[-1]
    else:
        own = name if isinstance(name, str) else ""
        found = re.split(r"[/\\]", re.split(r"[\s:@(]", own[:4096])[0])[-1]
    return "".join(sign if sign.isprintable() else "?" for sign in found[:_MOST_NAME]).strip(".")


def _homes() -> list[str]:
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    found = {home, os.path.realpath(home)} if len(home) > 1 else set()
    return sorted(found - {"/"}, key=len, reverse=True)


def _names() -> list[str]:
    users = {os.environ.get("USER"), os.environ.get("LOGNAME"), os.environ.get("USERNAME")}
    host = _node()
    found = {name for name in (*users, host, host.partition(".")[0]) if name and len(name) > 1}
    return sorted((name for name in found if name.lower() not in _NOBODY), key=len, reverse=True)


def _node() -> str:
    try:
        return platform.node()
    except Exception:  # noqa: BLE001 - a report must work on any machine
        return ""
