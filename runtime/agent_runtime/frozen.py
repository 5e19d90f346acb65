"""Frozen: the one shape that all value models of this project share; and Light, for values without number.

Immutable in Python, camelCase in JSON, the same JSON on the wire and in the store. This module
knows nothing of any particular model; `blocks`, `records`, `events`, `needs` and `profile`
build on it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import structs
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidatorFunctionWrapHandler,
    create_model,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema


def _to_the_millisecond(moment: datetime) -> datetime:
    """UTC, as exact as the JSON is, so that a value equals itself after a trip through it."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


Moment = Annotated[
    datetime,
    AfterValidator(_to_the_millisecond),
    PlainSerializer(_written, return_type=str, when_used="json"),
]
"""A point in time: UTC with milliseconds, in JSON `2026-01-31T12:00:00.000Z`."""


class Frozen(BaseModel):
    """A value: compared by content, never changed, dumped with camelCase names.

    Fields that are None are left out of the JSON (`wire.md`: absent, not null). Keys inside opaque
    values (a tool's input, a host's metadata) are never touched.
    """

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", ser_json_bytes="base64"
    )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of this value: camelCase keys, None fields left out.

        Where keys inside an opaque value are no text, U+FFFD stands for what no encoder takes.
        """
        try:
            return self.model_dump(mode="json", by_alias=True, exclude_none=True)
        except UnicodeEncodeError:
            readable = type(self).model_validate(_readable(self.model_dump()))
            return readable.model_dump(mode="json", by_alias=True, exclude_none=True)


class Strict(Frozen):
    """A value that people write: an unknown field is a typing error, so it is refused."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="forbid", ser_json_bytes="base64"
    )


class Light(msgspec.Struct, frozen=True, gc=False):
    """A value that is made so often that it is no model: one object and 0.05 us, not three and 1.4.

    The garbage collector looks at none of them, however many a log holds: none may lead back to itself. To
    make one checks nothing; pydantic reads and checks them as it does models with the same fields. Whoever
    inherits says `frozen=True` once more, for mypy.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        """For models that hold one, and for reading one from JSON."""
        fields: dict[str, Any] = {each.name: (each.type, _default(each)) for each in structs.fields(cls)}
        read = create_model(
            cls.__name__, __base__=Frozen, __doc__=cls.__doc__, __module__=cls.__module__, **fields
        )

        def made(value: Any, reader: ValidatorFunctionWrapHandler) -> Any:
            return value if isinstance(value, cls) else cls(**dict(reader(value)))

        def told_of(value: Any, teller: SerializerFunctionWrapHandler) -> Any:
            return teller(read.model_construct(**structs.asdict(value)))

        model = handler.generate_schema(read)
        written = core_schema.wrap_serializer_function_ser_schema(told_of, schema=model)
        return core_schema.no_info_wrap_validator_function(made, model, serialization=written)


def _default(field: structs.FieldInfo) -> Any:
    return ... if field.default is msgspec.NODEFAULT else field.default


def text_of(value: str) -> str:
    """The text with U+FFFD for each lone surrogate: what JSON may hold and UTF-8 may not."""
    return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return text_of(value)
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list | tuple) else value
