"""Which model a request is for, and whether it may be: read from the body while it passes.

Pure. Nothing of the body is kept: `ModelGuard` follows the JSON from token to token, in pieces of
any size, and reads only names and values at its top level. It must see what the vendor will see,
so it is strict: a name that comes twice, in whatever spelling, and anything that a lenient parser
could read otherwise, is refused. Whoever feeds it keeps the last piece back until `finish`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Final

from agent_runtime.gateway.vendor import Refused

MAX_STEPS: Final = 250_000
"""Brackets of one body, and strings at its top level. Following that many takes a quarter of a second."""
MAX_DEPTH: Final = 256
_LONGEST_NAME: Final = 512
"""Bytes of a name or of a model as they are spelled; longer ones are nobody's."""
_OTHERS: Final = frozenset({"models", "fallbacks"})
"""Names by which routers in front of models take a choice of models: not where models are restricted."""

_BLANK: Final = re.compile(rb"[ \t\r\n]*+")
_WITHIN: Final = re.compile(rb'(?:[ \t\r\n,:0-9A-Za-z+.\-]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
"""What may stand between the brackets of a nested value; whole strings among it."""
_SCALAR: Final = re.compile(rb"[0-9A-Za-z+.\-]*+")
_CHARACTERS: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)

_QUOTE, _OPENING, _CLOSING = b'"', b"{[", b"}]"


def admitted(models: Collection[str] | None, model: str) -> bool:
    """Whether a model is among them; `*` at the end of one stands for any rest. None: all are."""
    if models is None:
        return True
    return any(model.startswith(one[:-1]) if one.endswith("*") else model == one for one in models)


def check_model(models: Collection[str] | None, model: str) -> None:
    """Raises `Refused` for a model that is not among them."""
    if not admitted(models, model):
        raise Refused(403, f"The model {_shown(model)} is not among those of this session.")


class ModelGuard:
    """Follows one body. `known` tells whether a model was named, which is then one of `models`.

    Raises `Refused` from `feed` and `finish`.
    """

    def __init__(self, models: Collection[str]) -> None:
        self._models = models
        self._depth = 0
        self._steps = 0
        self._expected = "{"  # at the top level: { name : value , end
        self._name = ""
        self._text: bytearray | None = None  # of a string that is to be read
        self._in_string = False
        self._escaped = False
        self.known = False

    def feed(self, data: bytes) -> None:
        """More of the body."""
        at = 0
        while at < len(data):
            if self._in_string:
                at = self._string(data, at)
            elif self._depth > 1:
                at = self._nested(data, at)
            else:
                at = self._top(data, at)

    def finish(self) -> None:
        """That was all of it."""
        if self._expected != "end":
            raise _unreadable()
        if not self.known:
            raise Refused(400, "The request names no model.")

    def _string(self, data: bytes, at: int) -> int:
        if self._escaped:
            self._keep(data[at : at + 1])
            self._escaped = False
            return at + 1
        found = _CHARACTERS.match(data, at)
        assert found is not None
        end = found.end()
        self._keep(data[at:end])
        if end == len(data):
            return end
        if data[end : end + 1] == _QUOTE:
            self._in_string = False
            self._string_ended()
        else:  # a backslash, and what it escapes is in the next piece
            self._keep(data[end : end + 1])
            self._escaped = True
        return end + 1

    def _nested(self, data: bytes, at: int) -> int:
        at = _past(_WITHIN, data, at)
        if at == len(data):
            return at
        token = data[at : at + 1]
        if token == _QUOTE:
            self._begin_string(read=False)
        else:
            self._bracket(token)
        return at + 1

    def _top(self, data: bytes, at: int) -> int:
        at = _past(_BLANK, data, at)
        if at == len(data):
            return at
        token = data[at : at + 1]
        if self._expected in {"value", "rest"}:
            return self._value(token, data, at)
        if token == b"{" and self._expected == "{":
            self._bracket(token)
            self._expected = "name or end"
        elif token == _QUOTE and self._expected in {"name", "name or end"}:
            self._begin_string(read=True)
        elif token == b":" and self._expected == ":":
            self._expected = "value"
        elif token == b"," and self._expected == ",":
            self._expected = "name"
        elif token == b"}" and self._expected in {",", "name or end"}:
            self._bracket(token)
            self._expected = "end"
        else:
            raise _unreadable()
        return at + 1

    def _value(self, token: bytes, data: bytes, at: int) -> int:
        """A value at the top level. A model is a string; a scalar may go on in the next piece."""
        model = _folded(self._name) == "model"
        if token == _QUOTE and self._expected == "value":
            self._begin_string(read=model)
            return at + 1
        if model:
            raise Refused(400, "The request's model is no string.")
        if token in {b"{", b"["} and self._expected == "value":
            self._bracket(token)
            self._expected = ","
            return at + 1
        end = _past(_SCALAR, data, at)
        if end == at:
            if self._expected == "value":
                raise _unreadable()
            self._expected = ","
        else:
            self._expected = "rest" if end == len(data) else ","
        return end

    def _string_ended(self) -> None:
        if self._depth > 1:
            return
        text, self._text = self._text, None
        if self._expected == "value":
            if text is not None:
                check_model(self._models, _spelled(text))
                self.known = True
            self._expected = ","
            return
        self._name = _spelled(text or bytearray())
        folded = _folded(self._name)
        if folded in _OTHERS or (folded == "model" and self.known):
            raise Refused(400, "The request names more than one model.")
        self._expected = ":"

    def _begin_string(self, *, read: bool) -> None:
        self._count()
        self._in_string = True
        self._text = bytearray() if read else None

    def _keep(self, piece: bytes) -> None:
        if self._text is not None and len(self._text) <= _LONGEST_NAME:
            self._text += piece

    def _bracket(self, token: bytes) -> None:
        self._count()
        if token in {b"{", b"["}:
            self._depth += 1
        elif token in {b"}", b"]"}:
            self._depth -= 1
        else:
            raise _unreadable()
        if self._depth > MAX_DEPTH:
            raise _unreadable()

    def _count(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise Refused(413, "The request has too many parts to find its model in.")


def _past(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    found = pattern.match(data, at)
    assert found is not None  # they match nothing at all, too
    return found.end()


def _spelled(text: bytearray) -> str:
    """What a string's characters say; something that is no name where they are too many or wrong."""
    if len(text) > _LONGEST_NAME:
        return ""
    try:
        value = json.loads(f'"{text.decode()}"', strict=False)
    except ValueError as error:
        raise _unreadable() from error
    assert isinstance(value, str)
    return value


def _folded(name: str) -> str:
    """Some parsers take names in whatever case."""
    return name.casefold()


def _shown(model: str) -> str:
    """As much of it as an error may say."""
    return ascii(model[:100])


def _unreadable() -> Refused:
    return Refused(400, "The request's body is not plain JSON, so that its model cannot be told.")
