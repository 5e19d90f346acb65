"""exchange: one HTTP request to what listens inside a sandbox, and its answer. Knows no browser.

What answers is hostile: the parser is `h11`, which takes nothing that is not HTTP/1.1 to the letter;
head and informational answers are bounded, and whatever breaks a rule is one typed fault. Bodies are
streams in both directions; nothing is gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import h11

from agent_runtime.errors import InvalidRequest, SandboxFault
from agent_runtime.passages import Passage
from agent_runtime.transport.preview_policy import Headers

HEAD_BYTES: Final = 64 * 1024
_INFORMATIONAL: Final = 8
_STATUSES: Final = range(100, 600)
_VERSIONS: Final = (b"1.0", b"1.1")
SWITCHED: Final = 101


@dataclass(frozen=True, slots=True)
class Head:
    """How an answer begins."""

    status: int
    headers: Headers


class Exchange:
    """One request over a passage of its own."""

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)

    async def ask(self, method: str, target: str, headers: Headers) -> None:
        """Send the head. Raises `InvalidRequest` for what HTTP cannot say, `SandboxFault`."""
        try:
            encoded = [(name.encode("latin-1"), _raw(value)) for name, value in headers]
            request = h11.Request(method=method.encode(), target=_raw(target), headers=encoded)
            data = self._http.send(request)
        except (h11.LocalProtocolError, UnicodeEncodeError) as error:
            raise InvalidRequest("The request cannot be passed on.", code="malformed_request") from error
        await self._passage.send(data or b"")

    async def send(self, data: bytes) -> None:
        """Send a piece of the body. Raises `SandboxFault`."""
        await self._say(h11.Data(data=data))

    async def end(self) -> None:
        """The request is whole. Raises `SandboxFault`."""
        await self._say(h11.EndOfMessage())

    async def head(self) -> Head:
        """The head of the answer. Raises `SandboxFault` (`preview_bad_answer`)."""
        for _ in range(_INFORMATIONAL):
            event = await self._next()
            if not isinstance(event, h11.Response | h11.InformationalResponse) or _is_odd(event):
                break
            if isinstance(event, h11.Response) or event.status_code == SWITCHED:
                return Head(event.status_code, _headers(event))
        raise bad_answer()

    async def body(self) -> bytes:
        """The next piece of the answer; empty at its end. Raises `SandboxFault` where it is cut short."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Data) and event.data:
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""
            if not isinstance(event, h11.Data):
                raise bad_answer()

    def rest(self) -> bytes:
        """What came behind the head of an answer that switched to another protocol."""
        return self._http.trailing_data[0]

    async def _say(self, event: h11.Data | h11.EndOfMessage) -> None:
        try:
            data = self._http.send(event)
        except h11.LocalProtocolError as error:  # the answer was none, and that was said already
            raise bad_answer() from error
        if data:
            await self._passage.send(data)

    async def _next(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._passage.receive())
        except h11.RemoteProtocolError as error:
            raise bad_answer() from error
        return event


def bad_answer() -> SandboxFault:
    """What listens there does not speak HTTP, breaks off, or says what must not be passed on."""
    return SandboxFault("What listens at this port gave no proper answer.", code="preview_bad_answer")


def _is_odd(event: h11.Response | h11.InformationalResponse) -> bool:
    """What the parser lets pass: made-up versions and statuses, and a long head that came in one piece."""
    size = sum(len(name) + len(value) for name, value in event.headers)
    return size > HEAD_BYTES or event.status_code not in _STATUSES or event.http_version not in _VERSIONS


def _headers(event: h11.Response | h11.InformationalResponse) -> Headers:
    return [(name.decode("latin-1"), _text(value)) for name, value in event.headers]


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _raw(value: str) -> bytes:
    """A header's bytes as they came: the server reads them as UTF-8 where they are."""
    return value.encode("utf-8", "surrogateescape")
