"""route: what the table says of one route. The table itself is in `routes`."""

from __future__ import annotations

from dataclasses import dataclass

from agent_runtime.frozen import Frozen
from agent_runtime.transport.guard import Perform
from agent_runtime.transport.payloads import Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route: what it takes, and what it gives when all goes well.

    `gives` is a model, or a media type for what is not JSON; None for an empty answer. `streams`: the
    turn's events instead, where the caller accepts those. `has_end` False: an answer without an end.
    """

    method: str
    path: str
    perform: Perform
    says: str
    takes: type[Payload] | None = None
    query: type[Payload] | None = None
    gives: type[Frozen] | str | None = None
    status: int = 200
    is_public: bool = False
    streams: bool = False
    has_end: bool = True
    conditional: bool = False
    idempotent_by_key: bool = False
