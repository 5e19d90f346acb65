"""How much memory an event takes in a log: a cheap estimate that errs upwards.

Strings count with what Python really keeps for them, so a long text is counted exactly; what surrounds
them (models, entry, position, time) counts with constants that were measured. The cost grows with the
number of values, never with their length. Used for a bound, not for accounting.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from pydantic import BaseModel

from agent_runtime.events import Event, InputDelta, TextDelta

ENTRY_BYTES: Final = 300
"""A log entry with its position, time and place in the queue."""
MODEL_BYTES: Final = 450
"""A pydantic model without its values."""
_DELTA_BYTES: Final = ENTRY_BYTES + MODEL_BYTES + sys.getsizeof("input_delta")
"""A delta without its text and its ids."""


def size_of(event: Event) -> int:
    """Bytes that keeping the event costs, about."""
    if isinstance(event, TextDelta | InputDelta):  # nearly all; the long way takes 2 us
        ids = (
            sys.getsizeof(event.block_id)
            + sys.getsizeof(event.turn_id)
            + sys.getsizeof(event.conversation_id)
        )
        return _DELTA_BYTES + ids + sys.getsizeof(event.delta)
    total = ENTRY_BYTES
    rest: list[Any] = [event]
    while rest:
        value = rest.pop()
        if isinstance(value, str):  # first, because nearly all are
            total += sys.getsizeof(value)
        elif isinstance(value, BaseModel):
            total += MODEL_BYTES
            rest.extend(vars(value).values())
        elif isinstance(value, dict):
            total += sys.getsizeof(value)
            rest.extend(value)
            rest.extend(value.values())
        elif isinstance(value, (list, tuple)):
            total += sys.getsizeof(value)
            rest.extend(value)
        elif value is not None:
            total += sys.getsizeof(value)
    return total
