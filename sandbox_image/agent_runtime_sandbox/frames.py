"""Frames: the JSON lines between the runtime and the runner inside a sandbox, both ways.

The module that both sides share, with `long_lines`, which reads those of many MiB; standard library
only. Here are the names, the bounds, and the functions that read and write a line. What a frame does is
in `runner` (inside) and in `agent_runtime.session` (outside).

Any number of connections may be open to one runner. The first line of each says what it is for:

    attach             {after}          the session's own: everything below; a newer one replaces it
    port               {port}           to what listens inside, at 127.0.0.1 or ::1 (`ports`)
    terminal           {rows, cols}     to a shell on a terminal of its own (`terminals`)

The last two are answered by one line, `opened` or `refused` {code, message}: port_closed,
too_many_connections, too_many_terminals, terminal_failed. After `opened` a port's connection is the
plain stream of bytes; on a terminal's there are lines, both ways:

    data               {data}           base64: what is typed, what is shown
    resize             {rows, cols}     inward
    exit               {code}           outward, the last line; 128 + n for a shell ended by signal n

A runner that does not know a first line closes the connection without an answer.

Outward, runner to runtime. Kept frames carry `o`, a contiguous offset from 1, and `t`, seconds
since 1970; they are in the journal until they are acknowledged, and are sent again to whoever
attaches from an earlier offset. Passing frames have no `o`: they belong to one connection, and
arrive after all kept frames that were written before them.

    hello              passing  {v, head, oldest, agent}        the answer to attach
    reply              passing  {id, ok, result | error}        answer to the command `id`
    chunk              passing  {id, data, last}                base64 piece of a file that was read
    started            kept     {driver, info}                  the agent's process is there
    agent              kept     {line}                          a native line, untouched
    transcript         kept     {key, entries}                  entries of the agent's own transcript
    file               kept     {path, change, size, sha256, mtime, encoding?, content?}
    stderr             kept     {text}                          what the agent complains about
    exit               kept     {code, reason, message}         the agent's process ended
    fault              kept     {code, message}                 the runner itself could not do something;
                                too_many_files: files are there that are over the rules and are not told

`change` is created, modified or deleted; `agent` in hello is none, running or exited; `content`
is there when the file is at most INLINE_FILE_BYTES, as text (`encoding` utf-8) or base64. `mtime`
is in seconds since 1970; a file whose content is not told of has `sha256` null and `omitted`:
too_large (over the rules) or unreadable; of a deleted one only `path` and `change` are told.
`reason` of an exit is closed (asked for), died or start_failed; `code` and `message` are null where
they are not known.

Inward, runtime to runner. A command with an `id` gets one `reply`.

    attach             {after}                       the first line: what was seen
    ack                {o}                           forget up to here
    transcript         {id, key, entries}            before start: what the agent is to remember
    start              {id, driver, options}         start the agent; refused while one runs
    message            {id, uuid, content}           one user message -> {duplicate}; same uuid: ignored
    interrupt          {id}                          stop what runs; the agent stays
    options            {id, options}                 change a running agent's options
    list               {id}                          -> result {files: [...]}, each as in `file`
    read               {id, path}                    -> chunks, then reply {size, sha256}
    write              {id, path, data, append}      base64; append false begins anew -> {size, sha256}
    delete             {id, path}                    -> {deleted}
    sync               {id}                          look at all files now; the reply follows their frames
    close              {id}                          end the agent politely; the runner stays
    ping               {id}                          only to be answered: a stopped runner does not
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from agent_runtime_sandbox.long_lines import LONG_BYTES, LongLine, is_readable

PROTOCOL_VERSION: Final = 1
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""A longer line breaks the connection. The agent's own lines are bounded below this."""
CHUNK_BYTES: Final = 512 * 1024
"""Raw bytes of a file in one `chunk` or `write`."""
INLINE_FILE_BYTES: Final = 64 * 1024
"""Files up to this size travel inside their `file` frame."""
GATEWAY_ENV: Final = "AGENT_RUNTIME_GATEWAY"
"""Environment variable inside the sandbox: the path of the model gateway's unix socket."""
RELAY_ENV: Final = "AGENT_RUNTIME_RELAY"
"""Environment variable inside the sandbox, where there is a relay: its base address, `http://127.0.0.1:PORT`.

It leads to the same gateway: base URLs of clients are that address and, for OpenAI's, `/v1` behind
it; Anthropic's and Gemini's add their paths themselves. As a proxy it takes CONNECT alone.
"""
RELAY_PORT: Final = 3128
"""Where the relay listens in a sandbox that has a network of its own."""
WORKSPACE_ENV: Final = "AGENT_RUNTIME_WORKSPACE"
"""Environment variable inside the sandbox: the absolute path of the workspace."""
HOME_ENV: Final = "AGENT_RUNTIME_HOME"
"""Environment variable inside the sandbox: a private writable folder for the agent's own files."""

SIGNALLED: Final = "signalled"
"""Code of the fault of a runner that ends because of a signal, whoever sent it."""
OUT_OF_DISK: Final = "out_of_disk"
"""The code of the `fault` with which a runner ends that had to watch its disk, and saw it overdrawn."""

Frame = dict[str, Any]


class FrameError(ValueError):
    """A line that is no frame: not JSON, not an object, too long, or without a kind."""


def encode(frame: Frame) -> bytes:
    """One line, newline included. Lone surrogates (from file names) survive as escapes."""
    return "".join(_CHUNKS(frame, 0)).encode("ascii") + b"\n"


def _chunks() -> Callable[[Any, int], Iterable[str]]:
    """What a `json.JSONEncoder` works with, made once.

    It makes one each time: 11.7 us for an agent's line, 5.1 without. This one looks for no circles; they
    end in a `RecursionError`, as what is too deep does anyway.
    """
    plain = json.JSONEncoder(separators=(",", ":"))
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # a Python that is not written in C
        return lambda frame, _level: (plain.encode(frame),)
    escape = json.encoder.encode_basestring_ascii
    made: Callable[[Any, int], Iterable[str]] = make(
        None, plain.default, escape, None, ":", ",", False, False, True
    )
    return made


_CHUNKS: Final = _chunks()
Loads = Callable[[bytes], Any]
"""`json.loads`, or what gives the same and raises ValueError where that does; see `FrameReader`."""


def decode(line: bytes) -> Frame:
    """Read one line. Raises `FrameError`."""
    return FrameReader().feed(line + b"\n")[0] if len(line) > LONG_BYTES else _short(line, json.loads)


def _short(line: bytes, loads: Loads) -> Frame:
    try:
        return _frame(loads(line))
    except (ValueError, RecursionError) as error:
        raise FrameError("not JSON") from error


def _frame(value: Any) -> Frame:
    if not isinstance(value, dict) or not isinstance(value.get("k"), str):
        raise FrameError("not a frame")
    return value


class LongFrame(Frame):
    """What a long line said. `size` is the line's, in bytes."""

    size: int


class Writer(Protocol):
    """What `asyncio.StreamWriter` can, as far as it matters here."""

    def write(self, data: bytes) -> None:
        """Send soon."""

    async def drain(self) -> None:
        """Wait while much is to be sent."""


async def refuse(writer: Writer, code: str, message: str) -> None:
    """Answer the first line of a connection with a no."""
    writer.write(encode({"k": "refused", "code": code, "message": message}))
    await writer.drain()


def is_bounded(line: bytes) -> bool:
    """Whether a line may be read: long ones are, those that would be millions of objects are not."""
    return len(line) <= MAX_LINE_BYTES and (len(line) <= LONG_BYTES or is_readable(line))


class LineSplitter:
    """Cuts a byte stream into lines in linear time, however the pieces arrive.

    Raises `FrameError` from `feed` when a line grows over `MAX_LINE_BYTES`.
    """

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take more bytes; return the lines that are now whole, without their newline."""
        if b"\n" not in data:
            self._keep(data)
            return []
        first, *rest = data.split(b"\n")
        lines = [b"".join((*self._parts, first))]
        lines += rest[:-1]
        self._parts, self._size = [], 0
        self._keep(rest[-1])
        return lines

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit:
            raise FrameError(f"line over {self._limit} bytes")
        if data:
            self._parts.append(data)


class FrameReader:
    """Cuts a byte stream into frames; a long line is read while it arrives, and never held as a whole.

    `loads_for` tells what reads the other lines of some bytes: who has a faster reader than the standard
    library's brings it.
    """

    def __init__(self, loads_for: Callable[[bytes], Loads] = lambda _data: json.loads) -> None:
        self._loads_for = loads_for
        self._parts: list[bytes] = []
        self._size = 0
        self._long: LongLine | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """Take more bytes; return the frames that are now whole.

        Raises `FrameError` for a line that is no frame, or over `MAX_LINE_BYTES`.
        """
        *lines, begun = data.split(b"\n")
        frames = self._read(lines, self._loads_for(data)) if lines else []
        if begun:
            self._keep(begun)
        return frames

    def _read(self, lines: list[bytes], loads: Loads) -> list[Frame]:
        frames: list[Frame] = []
        for line in lines:
            if self._size or len(line) > LONG_BYTES:
                self._keep(line)
                frames.append(self._end())
            else:  # nearly all of them
                frames.append(_short(line, loads))
        return frames

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_LINE_BYTES:
            raise FrameError(f"line over {MAX_LINE_BYTES} bytes")
        if self._long is None and self._size > LONG_BYTES:
            self._long, data, self._parts = LongLine(), b"".join((*self._parts, data)), []
        if self._long is None:
            self._parts.append(data)
            return
        try:
            self._long.feed(data)
        except ValueError as error:
            raise FrameError("a long line that is not JSON, or of too many values") from error

    def _end(self) -> Frame:
        line, parts, size = self._long, self._parts, self._size
        self._long, self._parts, self._size = None, [], 0
        if line is None:
            whole = b"".join(parts)
            return _short(whole, self._loads_for(whole))
        try:
            frame = LongFrame(_frame(line.value()))
        except (ValueError, RecursionError) as error:
            raise FrameError("not JSON") from error
        frame.size = size
        return frame
