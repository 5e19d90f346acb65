"""Long lines: JSON of many MiB, read a piece at a time while it arrives. Pure; standard library only.

`json.loads` of 32 MiB holds its thread for a tenth of a second, and all others with it; millions of small
values take seconds and gigabytes. Honest lines are long because of a few long strings: those are decoded
piece by piece, and what is left, the skeleton, is read at the end. How many values it may hold is
bounded, so that this takes some 40 ms at the worst. What a line means is the business of `frames`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator
from itertools import accumulate
from typing import Any, Final

LONG_BYTES: Final = 1024 * 1024
"""Lines over this are long."""
MAX_VALUES: Final = 250_000
"""Commas and opening brackets outside of strings: each becomes an object of about a hundred bytes."""
MAX_DEPTH: Final = 200
"""Brackets within brackets."""

_PIECE_BYTES: Final = 256 * 1024
"""So much is looked at in one go: about a millisecond."""
_LONG_STRING: Final = 64 * 1024
"""Strings below this stay in the skeleton."""
_STAND_IN: Final = "-0.0E-"
"""Begins the number that stands in the skeleton for a long string; no encoder writes this capital E."""
_ESCAPE: Final = len("\\u0000")
_FIRST_OF_TWO: Final = re.compile(rb"\\u[dD][89abAB]..", re.DOTALL)
"""An escape that makes one character together with the next."""
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""Each bracket as a signed byte: one deeper, one less deep."""


class LongLine:
    """One line: `feed` its bytes in order, then take its `value`. Both raise ValueError."""

    def __init__(self) -> None:
        self.size = 0
        self._bounds = _Bounds()
        self._skeleton: list[bytes] = []
        self._texts: list[str] = []
        self._placed = 0
        self._string: _LongString | None = None
        self._held = b""

    def feed(self, data: bytes) -> None:
        """Take more of the line."""
        self.size += len(data)
        for at in range(0, len(data), _PIECE_BYTES):
            piece = self._held + data[at : at + _PIECE_BYTES]
            masked = _masked(piece)
            # What an escape means, and whether a string was a key, must be seen in one piece.
            cut = _whole_until(masked)
            self._held = piece[cut:]
            self._take(piece[:cut], masked[:cut])

    def value(self) -> Any:
        """What the line says, as `json.loads` reads it."""
        self._take(self._held, _masked(self._held))
        self._held = b""
        if self._string is not None:
            raise ValueError("a string without an end")
        return json.loads(b"".join(self._skeleton), parse_float=self._number)

    def _take(self, data: bytes, masked: bytes) -> None:
        """A piece in which all quotation marks that `masked` has begin or end a string."""
        if self._string is not None:
            end = masked.find(b'"')
            if end < 0:
                self._string.feed(data)
                return
            self._string.feed(data[:end])
            self._put(self._string, is_key=data[end + 1 : end + 2] == b":")
            self._string = None
            data, masked = data[end + 1 :], masked[end + 1 :]
        if masked.count(b'"') % 2:  # the last one goes on in the next piece
            begin = masked.rfind(b'"')
            self._string = _LongString()
            self._string.feed(data[begin + 1 :])
            data, masked = data[:begin], masked[:begin]
        self._bounds.check(b"".join(masked.split(b'"')[::2]))
        self._skeleton.append(data)

    def _put(self, string: _LongString, *, is_key: bool) -> None:
        raw = string.end()
        if isinstance(raw, bytes):
            self._skeleton.append(b'"' + raw + b'"')
        elif is_key:  # no number can stand for it
            self._skeleton.append(json.dumps(raw, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        else:
            self._skeleton.append(f"{_STAND_IN}{len(self._texts)}".encode())
            self._texts.append(raw)

    def _number(self, literal: str) -> float | str:
        """A text where one is due, each once and in order: who forges stand-ins multiplies nothing."""
        if self._placed < len(self._texts) and literal == f"{_STAND_IN}{self._placed}":
            self._placed += 1
            return self._texts[self._placed - 1]
        return float(literal)


class _LongString:
    """A string that goes beyond a piece, without its quotation marks; short ones are kept as they are."""

    def __init__(self) -> None:
        self._raw = b""
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogatepass").decode
        self._grown: Generator[None, str | None, str] | None = None

    def feed(self, raw: bytes) -> None:
        """More of it; never cut within an escape."""
        self._raw += raw
        if self._grown is None and len(self._raw) > _LONG_STRING:
            self._grown = _growing()
            next(self._grown)
        if self._grown is not None:
            self._grown.send(json.loads(f'"{self._decode(self._raw)}"'))
            self._raw = b""

    def end(self) -> bytes | str:
        """As it was written where it is short, read where it is long."""
        if self._grown is None:
            return self._raw
        self._decode(b"", True)
        try:
            self._grown.send(None)
        except StopIteration as whole:
            text: str = whole.value
            return text
        raise AssertionError("it ends with None")


def _growing() -> Generator[None, str | None, str]:
    """Joins what it is sent, until None.

    Python lengthens a string in place that only one local variable knows, so that nothing is copied twice
    and there is no long join at the end: that took 55 ms for 64 MiB, and this 1.5 ms a piece.
    """
    text = ""
    while (piece := (yield)) is not None:
        text += piece
    return text


class _Bounds:
    """Counts what stands outside of strings."""

    def __init__(self) -> None:
        self._values = 0
        self._depth = 0

    def check(self, outside: bytes) -> None:
        """Take more of it. Raises ValueError over `MAX_VALUES` and `MAX_DEPTH`."""
        brackets = outside.translate(_STEPS, _NO_BRACKETS)
        self._values += outside.count(b",") + brackets.count(b"\x01")
        if self._values > MAX_VALUES:
            raise ValueError("too many values")
        depths = list(accumulate(memoryview(brackets).cast("b"), initial=self._depth))
        self._depth = depths[-1]
        if max(depths) > MAX_DEPTH:
            raise ValueError("too deep")


def _masked(data: bytes) -> bytes:
    """The same length, without the quotation marks that are escaped."""
    if b"\\" not in data:
        return data
    return data.replace(b"\\\\", b"..").replace(b'\\"', b"..")


def _whole_until(masked: bytes) -> int:
    """Where to cut so that no escape, nor a pair of them, nor a string's end is torn from what follows it."""
    size = len(masked)
    if masked.endswith(b'"'):
        return size - 1
    escape = masked.rfind(b"\\", max(0, size - _ESCAPE + 1))
    if escape >= 0 and masked[escape + 1 : escape + 2] in {b"", b"u"}:
        size = escape
    return size - _ESCAPE if _FIRST_OF_TWO.match(masked, max(0, size - _ESCAPE), size) else size


def is_readable(line: bytes) -> bool:
    """Whether a whole line is within the bounds; looked at piece by piece, and not read."""
    bounds, held, inside = _Bounds(), b"", False
    try:
        for at in range(0, len(line), _PIECE_BYTES):
            masked = _masked(held + line[at : at + _PIECE_BYTES])
            cut = _whole_until(masked)
            held = masked[cut:]
            parts = masked[:cut].split(b'"')
            bounds.check(b"".join(parts[inside::2]))
            inside ^= len(parts) % 2 == 0
        parts = held.split(b'"')
        bounds.check(b"".join(parts[inside::2]))
    except ValueError:
        return False
    return True
