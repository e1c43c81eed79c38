"""The ``--json`` output: one form for all commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mpskit.system.privacy import scrub_all

__all__ = ["SCHEMA", "print_json"]

# A major version of mpskit only adds keys; a removed or changed key increments this.
SCHEMA = 1


def print_json(command: str, payload: Mapping[str, Any]) -> None:
    """Print ``payload`` as JSON, with the schema version and the command's name first.

    Every string in it is scrubbed: such a document is soon pasted into an issue.
    """
    document = {"schema": SCHEMA, "command": command, **scrub_all(payload)}
    print(json.dumps(document, indent=2, default=str, allow_nan=False))
