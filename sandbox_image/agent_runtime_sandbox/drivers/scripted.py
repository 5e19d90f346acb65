"""A driver without an agent: plays native lines, for tests and for measuring the pipeline.

Options: `turns`, a list of lists of lines: each message that is no order plays the next one, with
every string "$MESSAGE" in it replaced by the message's uuid; `linesPerSecond`, 0 for no pauses.
Without turns left, a message is echoed. A message's text may instead be an order:

    lines N [SIZE]      N lines of SIZE bytes of text, then a result
    transcript N        N transcript entries under `main`, then a result
    stderr TEXT         complain
    hang                work until interrupted
    exit CODE           die
    run PYTHON          a program in a process of its own; a result with its `code`, `out` and `err`
    recall              a result that tells how much transcript it was started with
    follow PATH         hand on what is written to a named pipe, one JSON object a line, up to a read whose
                        last line begins with {"type":"result"
    play PIECE          a JSON object, see below

Every played message ends with `{"type": "result", "message": uuid, "interrupted": bool}`, except
one from `turns`, a pipe's and a piece, which end as their lines do.

A piece is `{"steps": [...], "end": line, "interrupted": line}`: the steps, then the one line or the
other. Each step is one of

    {"line": {...}, "times": N}              say it, so many times (1), with the pause after each
    {"pause": SECONDS}                       cut short by an interrupt
    {"write": PATH, "text": TEXT}            a file of the workspace
    {"remember": [entry, ...]}               transcript entries under `main`
    {"takeIn": entry, "line": {...}}         take in each message that waits by now: an entry and a line
                                             for it, in which the marks are its own
    {"hang": true}                           work until interrupted
    {"exit": CODE}                           die

with every string "$MESSAGE" replaced by the message's uuid, "$MESSAGES" by a list of that and of those
taken in so far, "$HEARD" by the SHA-256 of the message's text, "$NOTES" by the number of parts before it,
"$AGENT" by a name that this agent's process keeps, "$RECALLED" by the SHA-256 of the entries of `main` that
it was started with (`digest`), "$OPTION:NAME" by a session option as it is now, "$TEXT:N" by N characters,
and "$PLACE" in an entry by its place in the transcript.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from agent_runtime_sandbox.drivers import AgentEnd, DriverError, Entries, Output, Places
from agent_runtime_sandbox.drivers.piped import PipedLines

_MOST_TOLD: Final = 256 * 1024
"""Of what a program printed."""
_RESULT: Final = b'{"type":"result"'
_UUID_MARK: Final = "$MESSAGE"
_UUIDS_MARK: Final = "$MESSAGES"
_HEARD_MARK: Final = "$HEARD"
_NOTES_MARK: Final = "$NOTES"
_NAME_MARK: Final = "$AGENT"
_RECALLED_MARK: Final = "$RECALLED"
_PLACE_MARK: Final = "$PLACE"
_OPTION_MARK: Final = "$OPTION:"
_TEXT_MARK: Final = "$TEXT:"


@dataclass(frozen=True)
class _Message:
    """What a user said, behind so many notes of the runtime."""

    uuid: str
    text: str
    notes: int


class ScriptedDriver:
    """Answers messages one after the other."""

    def __init__(self, output: Output, places: Places) -> None:
        self._output = output
        self._workspace = places.workspace
        self._user = places.user
        self._env = places.env
        self._info = {"workspace": str(places.workspace)}
        self._name = uuid.uuid4().hex
        self._inbox: asyncio.Queue[_Message | AgentEnd] = asyncio.Queue()
        self._stop = asyncio.Event()
        self._options: dict[str, Any] = {}
        self._session_options: dict[str, Any] = {}
        self._turns: list[list[dict[str, Any]]] = []
        self._recalled = 0
        self._recalled_digest = ""
        self._remembered = 0
        self._is_busy = False
        self._children: set[int] = set()

    async def start(self, options: Mapping[str, Any], transcript: Entries) -> dict[str, Any]:
        """Nothing is started. An option `failToStart` is the message of a failure."""
        if message := options.get("failToStart"):
            raise DriverError("agent_failed", str(message))
        self._options = dict(options)
        self._session_options = dict(options.get("options") or {})
        self._turns = list(options.get("turns", ()))
        self._recalled = sum(len(entries) for entries in transcript.values())
        self._remembered = len(transcript.get("main", ()))
        self._recalled_digest = digest(transcript.get("main", ()))
        return self._info

    async def run(self) -> AgentEnd:
        """Play until closed, killed or told to exit."""
        while True:
            order = await self._inbox.get()
            if isinstance(order, AgentEnd):
                return order
            self._is_busy = True
            end = await self._play(order)
            self._is_busy = False
            self._stop.clear()
            if end is not None:
                return end

    async def message(self, uuid: str, content: str | list[Any]) -> None:
        """Queue a message."""
        texts = [content] if isinstance(content, str) else _texts(content)
        self._inbox.put_nowait(_Message(uuid, texts[-1] if texts else "parts", max(0, len(texts) - 1)))

    async def interrupt(self) -> None:
        """Stop the message that is being played, or comes next; without one there is nothing to stop."""
        if self._is_busy or not self._inbox.empty():
            self._stop.set()

    async def configure(self, options: Mapping[str, Any]) -> None:
        """Take over `linesPerSecond`, and whatever a piece asks for."""
        self._options.update(options)
        self._session_options.update(options)

    async def close(self) -> None:
        """End after the messages before."""
        self._stop.set()
        self._inbox.put_nowait(AgentEnd(0))

    def kill(self) -> None:
        """The same, with the code of a killed process."""
        self._stop.set()
        self._inbox.put_nowait(AgentEnd(-9))

    def pids(self) -> Collection[int]:
        """Those of the programs that it runs."""
        return tuple(self._children)

    async def _play(self, message: _Message) -> AgentEnd | None:  # noqa: C901 - an order a case
        uuid, text = message.uuid, message.text
        verb, _, rest = text.partition(" ")
        result: dict[str, Any] = {"type": "result", "message": uuid}
        match verb:
            case "exit":
                return AgentEnd(int(rest or 1))
            case "lines":
                count, _, size = rest.partition(" ")
                filling = "x" * int(size or 0)
                await self._hand_on([{"type": "line", "n": n, "text": filling} for n in range(int(count))])
            case "transcript":
                self._output.transcript("main", [{"type": "entry", "n": n} for n in range(int(rest))])
            case "stderr":
                self._output.stderr(rest)
            case "hang":
                await self._stop.wait()
            case "run":
                result |= await self._run(rest)
            case "recall":
                result["recalled"] = self._recalled
            case "follow":
                await self._follow(rest)
                return None
            case "play":
                return await self._perform(message, json.loads(rest))
            case _ if self._turns:
                await self._hand_on([_filled(line, {_UUID_MARK: uuid}) for line in self._turns.pop(0)])
                return None
            case _:
                await self._output.line({"type": "echo", "text": text})
        await self._output.line({**result, "interrupted": self._stop.is_set()})
        return None

    async def _run(self, program: str) -> dict[str, Any]:
        """As an agent runs its tools: a child with the agent's environment, in the workspace.

        It reads the program from its input, so that it cannot end before its pid is known.
        """
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-"),
            cwd=self._workspace,
            env={**os.environ, **self._env},
            user=self._user,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )
        self._children.add(child.pid)
        try:
            out, complaints = await child.communicate(program.encode())
        finally:
            self._children.discard(child.pid)
        return {"code": child.returncode, "out": _end_of(out), "err": _end_of(complaints)}

    async def _follow(self, path: str) -> None:
        """What a program of somebody else's says; to us a pipe that has a name is its standard output."""
        pipe = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
        transport, lines = await asyncio.get_running_loop().connect_read_pipe(
            lambda: PipedLines(self._output, last=_RESULT), pipe
        )
        try:
            await lines.run()
        finally:
            transport.close()

    async def _hand_on(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if self._stop.is_set():
                return
            await self._output.line(line)
            rate = self._options.get("linesPerSecond", 0)
            await asyncio.sleep(1 / rate if rate else 0)

    async def _perform(self, message: _Message, piece: dict[str, Any]) -> AgentEnd | None:
        marks = self._marks(message)
        marks[_UUIDS_MARK] = [message.uuid]
        for step in piece["steps"]:
            if self._stop.is_set():
                break
            if "exit" in step:
                return AgentEnd(int(step["exit"]))
            await self._step(step, marks)
        last = piece["interrupted" if self._stop.is_set() else "end"]
        await self._output.line(_filled(last, marks))
        return None

    def _marks(self, message: _Message) -> dict[str, Any]:
        options = {f"{_OPTION_MARK}{name}": value for name, value in self._session_options.items()}
        return {
            **options,
            _UUID_MARK: message.uuid,
            _HEARD_MARK: hashlib.sha256(message.text.encode()).hexdigest(),
            _NOTES_MARK: message.notes,
            _NAME_MARK: self._name,
            _RECALLED_MARK: self._recalled_digest,
        }

    async def _step(self, step: dict[str, Any], marks: dict[str, Any]) -> None:
        match step:
            case {"takeIn": entry, "line": line}:
                for message in self._waiting():
                    marks[_UUIDS_MARK].append(message.uuid)
                    self._remember([entry], self._marks(message))
                    await self._output.line(_filled(line, self._marks(message)))
            case {"line": line}:
                for _ in range(step.get("times", 1)):
                    if self._stop.is_set():
                        return
                    await self._output.line(_filled(line, marks))
                    await self._pause(step.get("pause", 0))
            case {"pause": seconds}:
                await self._pause(seconds)
            case {"write": path, "text": text}:
                (self._workspace / path).write_text(text, encoding="utf-8")
            case {"remember": entries}:
                self._remember(entries, marks)
            case {"hang": True}:
                await self._stop.wait()

    def _waiting(self) -> list[_Message]:
        """The messages that wait, taken out of the inbox."""
        taken: list[_Message] = []
        while not self._inbox.empty():
            order = self._inbox.get_nowait()
            if isinstance(order, AgentEnd):
                self._inbox.put_nowait(order)
                break
            taken.append(order)
        return taken

    def _remember(self, entries: list[Any], marks: dict[str, Any]) -> None:
        first, self._remembered = self._remembered, self._remembered + len(entries)
        places = enumerate(entries, first)
        told = [_filled(entry, marks | {_PLACE_MARK: place}) for place, entry in places]
        self._output.transcript("main", told)

    async def _pause(self, seconds: float) -> None:
        if seconds:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), seconds)


def digest(entries: Sequence[Mapping[str, Any]]) -> str:
    """What entries are recognised by."""
    return hashlib.sha256(json.dumps(list(entries), sort_keys=True).encode()).hexdigest()


def _end_of(printed: bytes) -> str:
    return printed[-_MOST_TOLD:].decode(errors="replace")


def _texts(parts: list[Any]) -> list[str]:
    """What the user said is the last; notes of the runtime come before it."""
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _filled(value: Any, marks: Mapping[str, Any]) -> Any:
    if isinstance(value, str) and value.startswith(_TEXT_MARK):
        return "x" * int(value.removeprefix(_TEXT_MARK))
    if isinstance(value, str):
        return marks.get(value, value)
    if isinstance(value, dict):
        return {key: _filled(item, marks) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, marks) for item in value]
    return value
