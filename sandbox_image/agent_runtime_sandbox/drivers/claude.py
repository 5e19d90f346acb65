"""The driver of the Claude agent: one long-lived SDK client around the agent's binary.

Native lines are what the binary prints, as dicts, without the control traffic that the SDK
answers itself. The agent's transcript is mirrored out entry by entry and, when a conversation is
resumed, given back from what the runtime sent. The agent has no key and no network: its only way
to a model is the gateway's unix socket. Importing this module imports the SDK, which is slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import anyio

from agent_runtime_sandbox.drivers import AgentEnd, DriverError, Entries, Output, Places
from agent_runtime_sandbox.drivers.absent import absent
from agent_runtime_sandbox.drivers.adopted import AdoptedProcess
from agent_runtime_sandbox.drivers.background import BackgroundTasks
from agent_runtime_sandbox.drivers.claude_options import check, leave_foreign_settings, sdk_fields
from agent_runtime_sandbox.drivers.early import Asked, EarlyAgent
from agent_runtime_sandbox.drivers.fresh import fresh_folders
from agent_runtime_sandbox.drivers.shown_order import NOTE, ShownOrder

with absent("mcp"), absent("jsonschema"):
    # For tools served from this process, of which there are none: half a second and 45 MiB a session
    # for the one, a third of what is left of the import for the other.
    import claude_agent_sdk as sdk

INTERRUPT_S: Final = 10.0
CONFIGURE_S: Final = 60.0
SETTLE_S: Final = 1.0
"""How long a task in the background may take to end before it is told again."""
EOF_S: Final = 3.0
"""How long the agent may take to end once its input is closed, before it is terminated."""


class ClaudeDriver:
    """One process of the Claude agent."""

    def __init__(self, output: Output, places: Places) -> None:
        self._output = output
        self._places = places
        self._process: _ClientProcess | None = None
        self._tasks = BackgroundTasks()
        self._said: list[str] = []

    async def start(self, options: Mapping[str, Any], transcript: Entries) -> dict[str, Any]:
        """Start the binary, or take the one that was started early. Raises `DriverError`.

        `options` are those of `claude_options`.
        """
        began = time.monotonic()
        leave_foreign_settings()
        check(options)
        early, mirror = self._waiting(), _Mirror(self._output, transcript)
        try:
            client = await self._connect(options, mirror, early)
        except _NotTheSame:
            assert early is not None
            await asyncio.to_thread(early.drop)
            early = None
            client = await self._connect(options, mirror, None)
        self._process = _ClientProcess(client)
        return {
            "sdkVersion": sdk.__version__,
            "pid": self._process.pid,
            "startMs": round((time.monotonic() - began) * 1000),
            "early": early is not None,
        }

    async def _connect(
        self, options: Mapping[str, Any], mirror: _Mirror, early: EarlyAgent | None
    ) -> sdk.ClaudeSDKClient:
        """Raises `DriverError`; `_NotTheSame` where the early agent is not the one that is wanted."""
        folders = early.folders if early else await asyncio.to_thread(fresh_folders, self._places.home)
        resume = mirror.resumable(options.get("resume"))
        fields = sdk_fields(
            options, self._places, folders, resume=resume, store=mirror, stderr=self._complain
        )
        agents = _subagents(options.get("subagents") or {})
        client = sdk.ClaudeSDKClient(sdk.ClaudeAgentOptions(**fields, agents=agents))
        try:
            # For tracing, of which there is none here; 20 ms.
            with absent("opentelemetry"), _taking(early) if early else contextlib.nullcontext():
                await client.connect()
        except Exception as error:
            message = self._said[-1] if self._said else str(error)
            raise DriverError("agent_failed", message[:2000]) from error
        return client

    async def run(self) -> AgentEnd:
        """Hand on lines until the binary is gone; then remove what the SDK left."""
        process = self._started()
        message, shown = None, ShownOrder()
        try:
            async for line in process.lines():
                self._tasks.heard(line)
                if note := shown.note(line):
                    self._output.transcript("main", [note])
                await self._output.line(line)
        except Exception as error:
            message = self._said[-1] if self._said else str(error)
        code = process.exit_code
        with contextlib.suppress(Exception):
            await process.client.disconnect()
        return AgentEnd(process.exit_code if code is None else code, message)

    async def message(self, uuid: str, content: str | list[Any]) -> None:
        """Write one prompt. The uuid comes back in the lines that answer it."""
        prompt = {
            "type": "user",
            "message": {"role": "user", "content": content},
            "parent_tool_use_id": None,
            "uuid": uuid,
        }
        try:
            await self._started().client.query(_single(prompt))
        except Exception as error:
            raise DriverError("agent_failed", "the agent takes no messages") from error

    async def interrupt(self) -> None:
        """Stop the running turn and all that works in the background; harmless when nothing does.

        The agent rests afterwards: it is not told of what was stopped, and forgets messages that it
        was given and has not taken up. Raises `DriverError` where something would not end.
        """
        await self._control(self._stop_everything(), INTERRUPT_S)

    async def configure(self, options: Mapping[str, Any]) -> None:
        """Change `model` and `permissionMode`. Raises `DriverError` for anything else."""
        if unknown := options.keys() - {"model", "permissionMode"}:
            raise DriverError(
                "invalid_options", f"cannot be changed while it runs: {', '.join(sorted(unknown))}"
            )
        client = self._started().client
        if "model" in options:
            await self._control(client.set_model(options["model"]), CONFIGURE_S)
        if "permissionMode" in options:
            await self._control(client.set_permission_mode(options["permissionMode"]), CONFIGURE_S)

    async def close(self) -> None:
        """Interrupt, close the input, and terminate when that does not end it."""
        process = self._started()
        with contextlib.suppress(DriverError):
            await self.interrupt()
        await process.end_input()
        await process.wait(EOF_S)
        process.terminate()

    def kill(self) -> None:
        """Kill the binary."""
        self._started().kill()

    def pids(self) -> Collection[int]:
        """The binary's, which the event loop waits for."""
        return () if self._process is None else (self._process.pid,)

    async def _stop_everything(self) -> None:
        """The interrupt ends the turn and all subagents, the rest is stopped by name just before it.

        In this order, and at once: what is stopped by name begins a turn that tells of it, unless an
        interrupt finds that still waiting. A tool may begin something while this goes on: hence again.
        """
        process = self._started()
        named = self._tasks.outliving
        while True:
            stops = [process.stop_task(task_id) for task_id in named]
            *_, answer = await asyncio.gather(*stops, process.interrupt(), return_exceptions=True)
            if isinstance(answer, BaseException):
                raise answer
            if await self._tasks.over(SETTLE_S):
                return
            named = self._tasks.all

    def _started(self) -> _ClientProcess:
        if self._process is None:
            raise DriverError("agent_not_running", "the agent was not started")
        return self._process

    async def _control(self, request: Any, bound_s: float) -> None:
        try:
            async with asyncio.timeout(bound_s):
                await request
        except TimeoutError as error:
            raise DriverError("agent_timeout", f"no answer from the agent within {bound_s:g} s") from error
        except Exception as error:
            raise DriverError("agent_failed", str(error)[:2000]) from error

    def _waiting(self) -> EarlyAgent | None:
        """An agent that was started early, unless it was taken or ended since then."""
        early = self._places.early
        return early if early is not None and early.waits else None

    def _complain(self, text: str) -> None:
        self._said = [text]
        self._output.stderr(text)


class _ClientProcess:
    """The one place that looks behind the SDK's public names.

    The reason: its typed messages drop fields and whole kinds of lines that the runtime needs
    (`command_lifecycle`, `abandoned_blocks`, `api_message_id`), and it tells neither the process
    id nor the exit code, nor lets the input be closed while the output is still read.
    """

    def __init__(self, client: sdk.ClaudeSDKClient) -> None:
        self.client = client
        self._query = cast("Any", client._query)  # noqa: SLF001
        self._popen = self._query.transport._process  # noqa: SLF001
        self.pid: int = self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        code = self._popen.returncode
        return code if isinstance(code, int) else None

    def lines(self) -> AsyncIterator[dict[str, Any]]:
        """Raw lines without control traffic. Raises what ended the process, unless it ended well."""
        return cast("AsyncIterator[dict[str, Any]]", self._query.receive_messages())

    async def interrupt(self) -> None:
        """End the turn, its queue and all subagents: the public way leaves what waits in the queue."""
        await self._query._send_control_request({"subtype": "interrupt", "cancel_queued": True})  # noqa: SLF001

    async def stop_task(self, task_id: str) -> None:
        """End one background task. Raises where there is none, or none any more."""
        await self.client.stop_task(task_id)

    async def end_input(self) -> None:
        """Close the binary's input: it ends by itself when it has nothing to do."""
        await self._query.transport.end_input()

    async def wait(self, bound_s: float) -> None:
        """Wait for the end of the process, so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(bound_s):
                await self._popen.wait()

    def terminate(self) -> None:
        """SIGTERM, where it still runs: it ends its own children on that."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.terminate()

    def kill(self) -> None:
        """SIGKILL, where it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.kill()


class _Mirror:
    """The SDK's session store: entries go out as they are written, and come back when resuming.

    The project key is ignored: it derives from the directory, which may be another one next time. All
    of the agent's sessions are under one key, in the order in which they were written: `/clear` begins
    a new one. An entry tells whose it is, and only those of the resumed session come back.
    """

    def __init__(self, output: Output, transcript: Entries) -> None:
        self._output = output
        self._transcript = transcript

    def resumable(self, session_id: str | None) -> str | None:
        """The session, or None where `/clear` began it and nothing was said in it: it begins once more.

        The agent refuses to resume a session in which nothing was said.
        """
        said = [entry for entry in self._transcript.get("main", ()) if entry.get("type") in _SAID]
        return session_id if not said or any(_is_of(session_id, entry) for entry in said) else None

    async def append(self, key: Mapping[str, str], entries: Sequence[dict[str, Any]]) -> None:
        """Called by the SDK in order, shortly after the agent wrote the entries itself."""
        self._output.transcript(key.get("subpath") or "main", entries)

    async def load(self, key: Mapping[str, str]) -> list[dict[str, Any]] | None:
        """Called by the SDK before the agent is started with `resume`."""
        return self._of(key["session_id"], key.get("subpath") or "main") or None

    async def list_subkeys(self, key: Mapping[str, str]) -> list[str]:
        """The threads beside the main one."""
        threads = [thread for thread in self._transcript if thread != "main"]
        return [thread for thread in threads if self._of(key["session_id"], thread)]

    def _of(self, session_id: str, thread: str) -> list[dict[str, Any]]:
        """What the agent itself wrote of a session."""
        entries = self._transcript.get(thread, ())
        return [entry for entry in entries if _is_of(session_id, entry) and entry.get("type") != NOTE]


_SAID: Final = frozenset({"user", "assistant"})


def _is_of(session_id: str | None, entry: Mapping[str, Any]) -> bool:
    return bool(session_id == entry.get("sessionId", session_id))


def _subagents(given: Mapping[str, Any]) -> dict[str, sdk.AgentDefinition] | None:
    try:
        return {
            name: sdk.AgentDefinition(
                description=spec["description"],
                prompt=spec["prompt"],
                tools=spec.get("tools"),
                model=spec.get("model"),
            )
            for name, spec in given.items()
        } or None
    except (KeyError, TypeError, AttributeError) as error:
        raise DriverError("invalid_options", "a subagent needs `description` and `prompt`") from error


class _NotTheSame(BaseException):
    """The SDK asks for another process than the one that waits. No failure of it, and not its to report."""


@contextlib.contextmanager
def _taking(early: EarlyAgent) -> Iterator[None]:
    """Have the SDK take this where it would open a process (`anyio.open_process`). Raises `_NotTheSame`."""

    async def take(command: list[str], **how: Any) -> AdoptedProcess:
        process = early.take(Asked(command, how))
        if process is None:
            raise _NotTheSame
        return await AdoptedProcess.adopt(process)

    before = anyio.open_process
    setattr(anyio, "open_process", take)  # noqa: B010 - a type checker knows it as a function
    try:
        yield
    finally:
        setattr(anyio, "open_process", before)  # noqa: B010


async def _single(prompt: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield prompt
