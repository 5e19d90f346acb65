"""The commands that arrive on a connection: what each one needs, in which order, and its reply.

Messages, transcripts and starts keep their order among themselves, and so do changes to files; all
else runs at once. An answer goes to the connection that asked, if it is still there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from agent_runtime_sandbox.agent import AgentPlace
from agent_runtime_sandbox.attachment import Attachment, Detached
from agent_runtime_sandbox.beneath import FileRefused
from agent_runtime_sandbox.drivers import DriverError
from agent_runtime_sandbox.files import WorkspaceFiles, send_chunks
from agent_runtime_sandbox.frames import CHUNK_BYTES, Frame, FrameError

MAX_RUNNING: Final = 64
"""Commands under way; further ones wait in the socket."""

_log = logging.getLogger(__name__)
_Handler = Callable[[Frame, Attachment], Awaitable[dict[str, Any] | None]]


class CommandError(Exception):
    """A command that is malformed or unknown."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Commands:
    """Performs commands; `tasks` owns those that are under way."""

    def __init__(self, agent: AgentPlace, files: WorkspaceFiles, tasks: asyncio.TaskGroup) -> None:
        self._agent = agent
        self._files = files
        self._tasks = tasks
        self._running = asyncio.Semaphore(MAX_RUNNING)
        talk, change = asyncio.Lock(), asyncio.Lock()
        self._handlers: dict[str, tuple[_Handler, asyncio.Lock | None]] = {
            "transcript": (self._transcript, talk),
            "start": (self._start, talk),
            "message": (self._message, talk),
            "interrupt": (self._interrupt, None),
            "options": (self._options, None),
            "close": (self._close, None),
            "list": (self._list, None),
            "read": (self._read, None),
            "write": (self._write, change),
            "delete": (self._delete, change),
            "sync": (self._sync, change),
            "ping": (_ping, None),
        }

    async def begin(self, frame: Frame, attachment: Attachment) -> None:
        """Start a command; waits while too many are under way. Raises `FrameError` on a bad id."""
        if not isinstance(frame.get("id"), str | int | None):
            raise FrameError("an id is a string or a number")
        await self._running.acquire()
        self._tasks.create_task(self._perform(frame, attachment), name=f"command {frame['k'][:40]}")

    async def _perform(self, frame: Frame, attachment: Attachment) -> None:
        try:
            outcome = await self._outcome(frame, attachment)
            if frame.get("id") is not None:
                await attachment.send("reply", id=frame["id"], **outcome)
        except Detached:
            pass
        finally:
            self._running.release()

    async def _outcome(self, frame: Frame, attachment: Attachment) -> dict[str, Any]:
        try:
            handler, lane = self._handlers.get(frame["k"], (_unknown, None))
            if lane is None:
                result = await handler(frame, attachment)
            else:
                async with lane:
                    result = await handler(frame, attachment)
        except (CommandError, DriverError, FileRefused) as error:
            return {"ok": False, "error": {"code": error.code, "message": str(error)}}
        except Detached:
            raise
        except Exception as error:
            _log.exception("a command failed: %s", frame["k"][:40])
            return {"ok": False, "error": {"code": "internal", "message": type(error).__name__}}
        return {"ok": True, "result": result or {}}

    async def _transcript(self, frame: Frame, _attachment: Attachment) -> None:
        self._agent.remember(_field(frame, "key", str), _field(frame, "entries", list))

    async def _start(self, frame: Frame, _attachment: Attachment) -> None:
        await self._agent.start(_field(frame, "driver", str), _field(frame, "options", dict))

    async def _message(self, frame: Frame, _attachment: Attachment) -> dict[str, Any]:
        content = frame.get("content")
        if not isinstance(content, str | list):
            raise CommandError("invalid_command", "`content` is missing or of the wrong type")
        return {"duplicate": not await self._agent.message(_field(frame, "uuid", str), content)}

    async def _interrupt(self, _frame: Frame, _attachment: Attachment) -> None:
        await self._agent.interrupt()

    async def _options(self, frame: Frame, _attachment: Attachment) -> None:
        await self._agent.configure(_field(frame, "options", dict))

    async def _close(self, _frame: Frame, _attachment: Attachment) -> None:
        await self._agent.close()

    async def _list(self, _frame: Frame, _attachment: Attachment) -> dict[str, Any]:
        return {"files": self._files.known()}

    async def _read(self, frame: Frame, attachment: Attachment) -> dict[str, Any]:
        send = partial(attachment.send, "chunk", id=frame.get("id"))
        return await send_chunks(self._files, frame.get("path"), send)

    async def _write(self, frame: Frame, _attachment: Attachment) -> dict[str, Any]:
        try:
            data = base64.b64decode(_field(frame, "data", str), validate=True)
        except (binascii.Error, ValueError) as error:
            raise CommandError("invalid_command", "`data` is not base64") from error
        if len(data) > CHUNK_BYTES:
            raise CommandError("invalid_command", f"`data` is over {CHUNK_BYTES} bytes")
        return await self._files.write(frame.get("path"), data, append=bool(frame.get("append")))

    async def _delete(self, frame: Frame, _attachment: Attachment) -> dict[str, Any]:
        return await self._files.delete(frame.get("path"))

    async def _sync(self, _frame: Frame, _attachment: Attachment) -> None:
        await self._files.look()


async def _ping(_frame: Frame, _attachment: Attachment) -> None:
    """The reply is all that is wanted: somebody is there."""


async def _unknown(frame: Frame, _attachment: Attachment) -> dict[str, Any] | None:
    raise CommandError("unknown_command", f"there is no command {frame['k'][:40]!r}")


def _field(frame: Frame, name: str, kind: type) -> Any:
    value = frame.get(name)
    if not isinstance(value, kind):
        raise CommandError("invalid_command", f"`{name}` is missing or of the wrong type")
    return value
