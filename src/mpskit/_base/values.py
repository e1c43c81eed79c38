"""The base of every printable result, and nothing else."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Value"]


class Value(BaseModel):
    """A frozen result: ``str()`` is for a person, ``model_dump_json()`` for a program."""

    # Schemas are built on first use: choosing a device must not pay for results it never makes.
    # A class's first validation takes some 5 ms: where a short command makes a value of fields that
    # are known to be right, it is made by model_construct().
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
