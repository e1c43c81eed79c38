"""The base of every printable result, and nothing else."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Value"]


class Value(BaseModel):
    """A frozen result: ``str()`` is for a person, ``model_dump_json()`` for a program."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)
