"""Leaving: how a connection is seen to be over by somebody who does not read from it at present.

Who passes bytes on reads no faster than the other side takes them, so the end of a stream may stand
behind bytes that are never read. The kernel knows all the same.
"""

from __future__ import annotations

import asyncio
import select
from typing import Final

_LOOK_S: Final = 0.5
_HUNG_UP: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


async def gone(writer: asyncio.StreamWriter) -> None:
    """Return when the other side has closed the connection, or it is no more."""
    looking = select.poll()
    looking.register(writer.get_extra_info("socket").fileno(), _HUNG_UP)
    while not writer.transport.is_closing() and not looking.poll(0):  # noqa: ASYNC110 - nothing tells us
        await asyncio.sleep(_LOOK_S)
