"""Frozen: the one shape that all value models of this project share.

Immutable in Python, camelCase in JSON, the same JSON on the wire and in the store. This module
knows nothing of any particular model; `blocks`, `records`, `events` and `profile` build on it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Frozen(BaseModel):
    """A value: compared by content, never changed, dumped with camelCase names.

    Fields that are None are left out of the JSON (`wire.md`: absent, not null). Keys inside opaque
    values (a tool's input, a host's metadata) are never touched.
    """

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", ser_json_bytes="base64"
    )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of this value: camelCase keys, None fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
