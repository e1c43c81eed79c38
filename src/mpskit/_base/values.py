"""The base of every printable result, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

__all__ = ["Value", "printable"]


class Value(BaseModel):
    """A frozen result: ``str()`` is for a person, ``model_dump_json()`` for a program."""

    # Schemas are built on first use: choosing a device must not pay for results it never makes.
    # A class's first validation takes some 5 ms: where a short command makes a value of fields that
    # are known to be right, it is made by model_construct().
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @model_serializer(mode="wrap")
    def _as_json(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        """Write bytes that are no text (in a variable, in a program's name) as JSON can hold them.

        Python reads them as unpaired surrogates, which pydantic refuses to encode.
        """
        found = handler(self)
        return _encodable(found) if info.mode_is_json() else found

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the fields in the JSON schema, which the serializer does not change."""
        fields: Any = {key: item for key, item in core_schema.items() if key != "serialization"}
        return handler(fields)


def printable(text: str) -> str:
    """Return a text that can be encoded: a byte that is no character is written as an escape."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list | tuple) else value
