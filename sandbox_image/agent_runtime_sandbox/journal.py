"""The journal: numbered lines in one file, until they are acknowledged.

Offsets count from 1 without holes. Lines are appended, read from any kept offset in whole lines,
and forgotten by `ack`. What is in memory is a sparse index, and the newest write where it is small, so
a reader that stalls costs disk and no memory. It is not a crash log: the agent dies with the runner, so
nothing is recovered from the file. Numbering frames, waiting and waking are next door, in `outbox`.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

MARK_STRIDE_BYTES: Final = 64 * 1024
"""How far the index's marks are apart: what a read may have to skip over."""
COMPACT_BYTES: Final = 8 * 1024 * 1024
"""Less dead space than this at the front of the file is left alone."""
_COPY_BYTES: Final = 1024 * 1024
_REMEMBERED_BYTES: Final = 64 * 1024
"""Of what was written last: a reader that keeps up gets it without a system call (an eighth of a line)."""


class Journal:
    """Lines in a file that this object owns alone; the descriptor is open for reading and writing."""

    def __init__(self, fd: int, *, stride: int = MARK_STRIDE_BYTES, compact: int = COMPACT_BYTES) -> None:
        os.ftruncate(fd, 0)
        self._fd = fd
        self._stride = stride
        self._compact_over = compact
        self._end = 0
        self._head = 0
        self._acked = 0
        self._mark_offsets: list[int] = []
        self._mark_positions: list[int] = []
        self._hint = (0, 0)
        self._newest = (0, b"")

    @property
    def head(self) -> int:
        """The newest offset; 0 before the first line."""
        return self._head

    @property
    def oldest(self) -> int:
        """The smallest offset that is kept; `head + 1` when nothing is."""
        return self._acked + 1

    @property
    def live_bytes(self) -> int:
        """Bytes that are not known to be dead; at most one stride too many."""
        return self._end - (self._mark_positions[0] if self._mark_positions else 0)

    @property
    def marks(self) -> int:
        """How many entries the index has."""
        return len(self._mark_offsets)

    def append(self, lines: Sequence[bytes]) -> None:
        """Add lines, each with its newline, in one write. Raises `OSError`; then none was added."""
        data = b"".join(lines)
        self._write(data)
        self._newest = (self._head + 1, data) if len(data) <= _REMEMBERED_BYTES else (0, b"")
        for line in lines:
            self._head += 1
            if not self._mark_positions or self._end - self._mark_positions[-1] >= self._stride:
                self._mark_offsets.append(self._head)
                self._mark_positions.append(self._end)
            self._end += len(line)

    def read(self, after: int, limit: int) -> tuple[bytes, int]:
        """Whole lines with an offset over `after`, within `limit` bytes where the first one fits.

        A first line over the limit is read whole, with at most as many bytes of others behind it.

        Returns the bytes and the offset of the last line. Lines that are forgotten are passed over;
        where nothing is left, returns no bytes and the offset up to which there is nothing.
        """
        first = max(after, self._acked) + 1
        if first > self._head:
            return b"", first - 1
        if first == self._newest[0] and len(self._newest[1]) <= limit:
            self._hint = (self._head + 1, self._end)
            return self._newest[1], self._head
        position = self._position_of(first)
        want = limit
        chunk = os.pread(self._fd, want, position)
        while (cut := chunk.rfind(b"\n")) < 0:
            want *= 2
            chunk = os.pread(self._fd, want, position)
        data = chunk[: cut + 1]
        last = first + data.count(b"\n") - 1
        self._hint = (last + 1, position + len(data))
        return data, last

    def ack(self, offset: int) -> None:
        """Forget all lines up to `offset`. An offset that is too large means all; a small one nothing."""
        offset = min(offset, self._head)
        if offset <= self._acked:
            return
        self._acked = offset
        if offset == self._head:
            self._clear()
            return
        first_needed = bisect_right(self._mark_offsets, offset + 1) - 1
        del self._mark_offsets[:first_needed]
        del self._mark_positions[:first_needed]
        dead = self._mark_positions[0]
        if dead > self._compact_over and dead * 2 > self._end:
            self._compact(dead)

    def _clear(self) -> None:
        os.ftruncate(self._fd, 0)
        self._end = 0
        self._mark_offsets.clear()
        self._mark_positions.clear()
        self._hint = (0, 0)

    def _compact(self, dead: int) -> None:
        """Move the living part to the front. Amortised: more than it moves has died."""
        source, target = dead, 0
        while chunk := os.pread(self._fd, _COPY_BYTES, source):
            os.pwrite(self._fd, chunk, target)
            source += len(chunk)
            target += len(chunk)
        os.ftruncate(self._fd, target)
        self._end = target
        self._mark_positions = [position - dead for position in self._mark_positions]
        self._hint = (0, 0)

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                rest = memoryview(data)[written:] if written else data
                written += os.pwrite(self._fd, rest, self._end + written)
        except OSError:
            os.ftruncate(self._fd, self._end)
            raise

    def _position_of(self, offset: int) -> int:
        mark = bisect_right(self._mark_offsets, offset) - 1
        known, position = self._mark_offsets[mark], self._mark_positions[mark]
        if known < self._hint[0] <= offset:
            known, position = self._hint
        return self._skip(position, offset - known)

    def _skip(self, position: int, lines: int) -> int:
        while lines:
            chunk = os.pread(self._fd, self._stride, position)
            here = chunk.count(b"\n")
            if here < lines:
                lines -= here
                position += len(chunk)
                continue
            cut = -1
            for _ in range(lines):
                cut = chunk.index(b"\n", cut + 1)
            return position + cut + 1
        return position
