"""How much memory an event takes in a log: a cheap estimate that errs upwards.

Strings count with what Python really keeps for them, so a long text is counted exactly; what surrounds
them (models, entry, position, time) counts with constants that were measured. The cost grows with the
number of values, never with their length. Used for a bound, not for accounting.
"""

from __future__ import annotations

from sys import getsizeof
from typing import Any, Final

from pydantic import BaseModel

from agent_runtime.events import Delta, Event

ENTRY_BYTES: Final = 300
"""A log entry with its position, time and place in the queue."""
MODEL_BYTES: Final = 450
"""A pydantic model without its values."""
DELTA_BYTES: Final = 80
"""A delta, which is no model, without its text and its ids."""


def size_of(event: Event) -> int:
    """Bytes that keeping the event costs, about."""
    if isinstance(event, Delta):  # nearly all; the long way takes 2 us
        ids = getsizeof(event.block_id) + getsizeof(event.turn_id) + getsizeof(event.conversation_id)
        return ENTRY_BYTES + DELTA_BYTES + ids + getsizeof(event.delta)
    total = ENTRY_BYTES
    rest: list[Any] = [event]
    while rest:
        value = rest.pop()
        if isinstance(value, str):  # first, because nearly all are
            total += getsizeof(value)
        elif isinstance(value, BaseModel):
            total += MODEL_BYTES
            rest.extend(vars(value).values())
        elif isinstance(value, dict):
            total += getsizeof(value)
            rest.extend(value)
            rest.extend(value.values())
        elif isinstance(value, (list, tuple)):
            total += getsizeof(value)
            rest.extend(value)
        elif value is not None:
            total += getsizeof(value)
    return total
