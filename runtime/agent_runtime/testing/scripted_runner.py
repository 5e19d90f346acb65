"""ScriptedRunner: a runner in this process: kept frames, commands, files and an agent from a script.

It keeps the promises of the real one (`agent_runtime_sandbox.runner`) that the runtime leans on:
contiguous offsets, replay to whoever attaches, replies after the frames before them, each message
uuid once. There is no process and no disk, so a whole story takes milliseconds. Bytes come and go
through `scripted_sandbox`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

from agent_runtime.blocks import AssistantText, BlockState
from agent_runtime.clock import now
from agent_runtime.events import BlockComplete, BlockStart, TextDelta
from agent_runtime.records import TurnStatus
from agent_runtime.reports import AgentTurnEnded, Translated
from agent_runtime.testing.scripted_agent import line_of
from agent_runtime_sandbox.frames import (
    CHUNK_BYTES,
    INLINE_FILE_BYTES,
    PROTOCOL_VERSION,
    Frame,
    encode,
)


class Stage:
    """What a script has in hand while it plays the agent in one sandbox.

    `message` is the text that it answers, `turn_id` the message's uuid; `interrupted` is set when
    the runtime asks to stop; `recalled` is the transcript that the agent was started with.
    """

    def __init__(self, runner: ScriptedRunner, turn_id: str, message: Any) -> None:
        self.turn_id = turn_id
        self.message = message
        self.interrupted = runner.interrupted
        self.recalled = runner.recalled
        self._runner = runner

    def tell(self, *told: Translated) -> None:
        """Print lines that are translated to these events and reports; they arrive together."""
        self._runner.keep("agent", [{"line": line_of(each)} for each in told])

    def line(self, line: Any) -> None:
        """Print any line, or what is none."""
        self._runner.keep("agent", [{"line": line}])

    def text(self, block_id: str, *pieces: str) -> None:
        """Stream a block of text, whole at the end."""
        block = AssistantText(id=block_id, timestamp=now(), state=BlockState.STREAMING)
        whole = block.model_copy(update={"state": BlockState.COMPLETE, "content": "".join(pieces)})
        deltas = [TextDelta(block_id=block_id, delta=piece) for piece in pieces]
        self.tell(BlockStart(block=block), *deltas, BlockComplete(block_id=block_id, block=whole))

    def rest(self, status: TurnStatus = TurnStatus.COMPLETED, **facts: Any) -> None:
        """End the turn; `facts` are those of `AgentTurnEnded`."""
        self.tell(AgentTurnEnded(status=status, **facts))

    def write(self, path: str, content: bytes) -> None:
        """Change a file of the workspace; the watcher tells at once."""
        self._runner.change(path, content)

    def delete(self, path: str) -> None:
        """Delete a file of the workspace."""
        self._runner.files.pop(path, None)
        self._runner.keep("file", [{"path": path, "change": "deleted"}])

    def remember(self, *entries: dict[str, Any], key: str = "main") -> None:
        """Write to the agent's own transcript."""
        self._runner.keep("transcript", [{"key": key, "entries": list(entries)}])

    def exit(self, code: int | None = None) -> None:
        """The agent's process ends; the sandbox lives on."""
        self._runner.end_agent("died", code)

    def fault(self, code: str) -> None:
        """The runner complains of something by itself."""
        self._runner.keep("fault", [{"code": code, "message": code}])


Script: TypeAlias = Callable[[Stage], Awaitable[None]]
Before: TypeAlias = Callable[[Frame], Awaitable[bool]]
"""Called with each command before it is performed; False: it is never performed nor answered."""


async def echo(stage: Stage) -> None:
    """The simplest script: says what was said, and rests."""
    stage.text(f"{stage.turn_id}-text", str(stage.message))
    stage.rest()


async def _all_go(_: Frame) -> bool:
    return True


class ScriptedRunner:
    """One runner. `spawn` runs the script's tasks; `send` is where frames for the attached one go."""

    def __init__(self, script: Script, spawn: Callable[[Any], asyncio.Task[Any]]) -> None:
        self.files: dict[str, bytes] = {}
        self.recalled: dict[str, list[dict[str, Any]]] = {}
        self.started: dict[str, Any] | None = None
        self.commands: list[Frame] = []
        self.acknowledged = 0
        self.interrupted = asyncio.Event()
        self.before: Before = _all_go
        self.send: Callable[[bytes], None] | None = None
        self._script = script
        self._spawn = spawn
        self._kept: list[Frame] = []
        self._uuids: set[str] = set()
        self._playing: set[asyncio.Task[Any]] = set()

    def stage(self, turn_id: str = "", message: Any = "") -> Stage:
        """A stage for what the agent does by itself, without a message."""
        return Stage(self, turn_id, message)

    def keep(self, kind: str, many: Sequence[dict[str, Any]]) -> None:
        """Keep frames and send them together."""
        frames: list[Frame] = []
        for fields in many:
            offset = len(self._kept) + len(frames) + 1
            frames.append({"o": offset, "t": now().timestamp(), "k": kind, **fields})
        self._kept += frames
        self.pass_on(*frames)

    def pass_on(self, *frames: Frame) -> None:
        """Send frames, if somebody is attached."""
        if self.send is not None:
            self.send(b"".join(encode(frame) for frame in frames))

    def attach(self, after: int, send: Callable[[bytes], None]) -> None:
        """Take a connection in place of the one before. What was acknowledged is forgotten."""
        self.send = send
        hello = {
            "k": "hello",
            "v": PROTOCOL_VERSION,
            "head": len(self._kept),
            "oldest": self.acknowledged + 1,
            "agent": self._state(),
        }
        self.pass_on(hello, *self._kept[max(after, self.acknowledged) :])

    def _state(self) -> str:
        if self.started is not None:
            return "running"
        return "exited" if any(frame["k"] == "started" for frame in self._kept) else "none"

    def change(self, path: str, content: bytes) -> None:
        """A file was written inside: small ones travel with the report."""
        change = "modified" if path in self.files else "created"
        self.files[path] = content
        report: dict[str, Any] = {"path": path, "change": change, **_facts(content)}
        if len(content) <= INLINE_FILE_BYTES:
            report |= {"encoding": "base64", "content": base64.b64encode(content).decode()}
        self.keep("file", [report])

    def end_agent(self, reason: str, code: int | None = 0) -> None:
        """End what plays, and tell."""
        self.started = None
        self.end_playing()
        self.keep("exit", [{"code": code, "reason": reason, "message": None}])

    def end_playing(self) -> None:
        """Cancel the scripts that play."""
        for task in self._playing:
            task.cancel()

    async def perform(self, frame: Frame) -> None:
        """Perform one command and answer it."""
        self.commands.append(frame)
        if not await self.before(frame):
            return
        if frame["k"] == "ack":
            self.acknowledged = max(self.acknowledged, frame["o"])
            return
        perform = _COMMANDS.get(frame["k"])
        answer: dict[str, Any]
        try:
            answer = {"ok": True, "result": perform(self, frame) if perform else {}}
        except _RefusedError as refused:
            answer = {"ok": False, "error": {"code": refused.code, "message": str(refused)}}
        self.pass_on({"k": "reply", "id": frame.get("id"), **answer})

    def start(self, frame: Frame) -> dict[str, Any]:
        """Start the agent."""
        if self.started is not None:
            raise _RefusedError("an agent runs already")
        self.started = frame["options"]
        self.keep("started", [{"driver": frame["driver"], "info": {}}])
        return {}

    def message(self, frame: Frame) -> dict[str, Any]:
        """Play the script for a message, each uuid once."""
        if frame["uuid"] in self._uuids:
            return {"duplicate": True}
        if self.started is None:
            raise _RefusedError("no agent runs", code="agent_not_running")
        self._uuids.add(frame["uuid"])
        self.interrupted.clear()
        self.play(Stage(self, frame["uuid"], frame["content"]))
        return {"duplicate": False}

    def play(self, stage: Stage) -> None:
        """Run the script."""
        task = self._spawn(self._script(stage))
        self._playing.add(task)
        task.add_done_callback(self._playing.discard)

    def interrupt(self, _: Frame) -> dict[str, Any]:
        """Ask the script to stop."""
        self.interrupted.set()
        return {}

    def remember(self, frame: Frame) -> dict[str, Any]:
        """Transcript entries for the agent that is to be started."""
        self.recalled.setdefault(frame["key"], []).extend(frame["entries"])
        return {}

    def read(self, frame: Frame) -> dict[str, Any]:
        """Send a file in pieces."""
        content = self.files.get(frame["path"])
        if content is None:
            raise _RefusedError("there is no such file")
        for at in range(0, len(content), CHUNK_BYTES):
            data = base64.b64encode(content[at : at + CHUNK_BYTES]).decode()
            self.pass_on({"k": "chunk", "id": frame["id"], "data": data, "last": False})
        return _facts(content)

    def list(self, _: Frame) -> dict[str, Any]:
        """Tell of all files."""
        return {"files": [{"path": path, **_facts(content)} for path, content in self.files.items()]}

    def write(self, frame: Frame) -> dict[str, Any]:
        """Take a piece of a file."""
        before = self.files.get(frame["path"], b"") if frame["append"] else b""
        self.files[frame["path"]] = content = before + base64.b64decode(frame["data"])
        return _facts(content)

    def close(self, _: Frame) -> dict[str, Any]:
        """End the agent politely."""
        if self.started is not None:
            self.end_agent("closed")
        return {}


class _RefusedError(Exception):
    """What a runner says no to."""

    def __init__(self, message: str, *, code: str = "refused") -> None:
        super().__init__(message)
        self.code = code


_COMMANDS: Final[dict[str, Callable[[ScriptedRunner, Frame], dict[str, Any]]]] = {
    "start": ScriptedRunner.start,
    "message": ScriptedRunner.message,
    "interrupt": ScriptedRunner.interrupt,
    "transcript": ScriptedRunner.remember,
    "list": ScriptedRunner.list,
    "read": ScriptedRunner.read,
    "write": ScriptedRunner.write,
    "close": ScriptedRunner.close,
}
"""The others (options, sync) have nothing to do here and are answered."""


def _facts(content: bytes) -> dict[str, Any]:
    return {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "mtime": now().timestamp(),
    }
