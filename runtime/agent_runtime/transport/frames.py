"""frames: live events as they leave: framed once, written straight to a socket or queued for it.

`framed` makes of events what every viewer is sent, as packets for the queues of `engine` and as the
bytes of WebSocket frames; both are shared by all receivers. `Backlog` is such a queue, and knows
whether anything of it is still ahead of a frame that would be written past it. Who gets what, and
which way, is decided in `engine`; nothing here writes.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from engineio.packet import MESSAGE  # type: ignore[import-untyped]
from engineio.packet import Packet as Frame
from socketio.packet import EVENT

WRITE_BYTES: Final = 64 * 1024
"""Events that are due together are written together up to here; more is held by a socket only if one
event alone is larger. Also what may wait in a socket that is still written to: asyncio's own mark."""

_TEXT: Final = 0x81
"""First byte of a frame: a whole text message."""
_MEDIUM: Final = 126
"""From this size on it does not fit into the header's second byte, which then says so with itself."""
_OPENING: Final = b'%d%d["' % (MESSAGE, EVENT)

Told = tuple[str, bytes]
"""(event name, encoded payload), which is JSON in UTF-8. The name needs no escapes."""


class LiveFrame(Frame):  # type: ignore[misc]
    """A packet of the live stream, shared by all its receivers; counted where it waits."""


class Batch:
    """Events that are written at once; made for the first receiver of each kind, and shared by all.

    Args:
        packets: each as Engine.IO's text, in order.
    """

    __slots__ = ("_queued", "packets", "written")

    def __init__(self, packets: Sequence[bytes]) -> None:
        self.packets = packets
        self._queued: tuple[LiveFrame, ...] = ()
        self.written = b"".join([header(len(packet)) + packet for packet in packets])

    @property
    def queued(self) -> tuple[LiveFrame, ...]:
        """As what waits in a queue."""
        if not self._queued:
            self._queued = tuple(LiveFrame(MESSAGE, packet[1:].decode()) for packet in self.packets)
        return self._queued


def framed(events: Iterable[Told]) -> Iterator[Batch]:
    """Events as batches of at most `WRITE_BYTES`, or of one event that is larger."""
    packets: list[bytes] = []
    size = 0
    for name, payload in events:
        packet = b'%b%b",%b]' % (_OPENING, name.encode(), payload)
        if packets and size + len(packet) > WRITE_BYTES:
            yield Batch(packets)
            packets, size = [], 0
        packets.append(packet)
        size += len(packet)
    if packets:
        yield Batch(packets)


def header(size: int) -> bytes:
    """What stands before a text of so many bytes from a server (RFC 6455, 5.2): whole, not masked."""
    if size < _MEDIUM:
        return struct.pack("!BB", _TEXT, size)
    if size < 1 << 16:
        return struct.pack("!BBH", _TEXT, _MEDIUM, size)
    return struct.pack("!BBQ", _TEXT, _MEDIUM + 1, size)


class Backlog(asyncio.Queue[Any]):
    """What waits for one connection, with its size: of everything, and of live events alone.

    `socket` is the connection's websocket, while it has one (`engine.GuardedWebSocket`).
    """

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self.is_doomed = False
        self.socket: Any = None
        self.taken = asyncio.Event()
        self.total_bytes = 0
        self.live_bytes = 0
        self._in_hand = 0

    @property
    def is_passable(self) -> bool:
        """Whether nothing waits, nor is on its way from here to whoever writes it.

        A packet that was taken is with its taker only some steps of the loop later; the library says
        `task_done` there.
        """
        return not self._in_hand

    def task_done(self) -> None:
        """The taker has the packet."""
        super().task_done()
        self._in_hand -= 1

    def _put(self, item: Any) -> None:
        super()._put(item)
        self._in_hand += 1
        self._count(item, +1)

    def _get(self) -> Any:
        item = super()._get()
        self._count(item, -1)
        self.taken.set()
        return item

    def _count(self, item: Any, sign: int) -> None:
        size = sign * len(item.data) if item is not None and isinstance(item.data, str) else 0
        self.total_bytes += size
        if isinstance(item, LiveFrame):
            self.live_bytes += size
