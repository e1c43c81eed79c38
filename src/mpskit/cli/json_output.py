"""The ``--json`` twin of what a person reads: one shape for every command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["SCHEMA", "print_json"]

# Keys are only added within a major version of mpskit; a removed or changed key raises this.
SCHEMA = 1


def print_json(command: str, payload: Mapping[str, Any]) -> None:
    """Print ``payload`` on stdout with the schema version and the command's name first."""
    document = {"schema": SCHEMA, "command": command, **payload}
    print(json.dumps(document, indent=2, default=str, allow_nan=False))
