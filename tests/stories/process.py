"""The whole system as an operator has it: `agent-runtime serve` as a process, sandboxes below its folder.

    async with house(folder, scripts=SCRIPTS) as it:
        async with it.life() as life:       a process, until the block ends or it is ended by a signal
            life.url, life.token, life.http what a client needs; a `viewer` takes it as its server
            await life.end(signal.SIGKILL)
        async with it.life() as life:       the next process over the same folder
        it.sandbox(session_id)              what lives in the meantime, by its processes
        it.model                            what was asked of the scripted model, which outlives all of them

A story within one process has it easier with `serving`.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import aiohttp

from agent_runtime.testing.script import Script
from agent_runtime.testing.scripted_model import ScriptedModel
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.registry import Record, Registry
from tests.seen_from_outside import files_of

COMMAND = str(Path(sys.executable).parent / "agent-runtime")
TOKEN = "a-token-for-the-stories"
READY_S = 45
END_S = 20
RUNNER, AGENT = "python", "claude"

Transcript: TypeAlias = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Life:
    """One process that serves."""

    url: str
    token: str
    http: aiohttp.ClientSession
    process: Process

    async def end(self, number: signal.Signals) -> float:
        """Send a signal; return how many seconds later the process was gone."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.process.send_signal(number)
        async with asyncio.timeout(END_S):
            await self.process.wait()
        return loop.time() - began


class House:
    """A data folder, the settings and the environment that it is served with, and the model."""

    def __init__(
        self, data: Path, model: ScriptedModel, settings: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self.data = data
        self.model = model
        self._environment = environment
        self._config = data / "settings.yaml"
        self._config.write_text(json.dumps({"port": 0, "data": str(data), **settings}))
        self._sandboxes = Registry(data / "sandboxes")

    @asynccontextmanager
    async def life(self) -> AsyncIterator[Life]:
        """Serve in a process of its own. If it still runs at the end, Ctrl-C ends it with its sandboxes."""
        environment = {
            **os.environ,
            "ANTHROPIC_BASE_URL": self.model.url,
            "ANTHROPIC_API_KEY": "a-key-for-the-stories",
            "AGENT_RUNTIME_TOKEN": TOKEN,
            **self._environment,
        }
        with (self.data / "errors.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                COMMAND, "serve", "--config", str(self._config), stdout=PIPE, stderr=log, env=environment
            )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(READY_S):
                line = await process.stdout.readline()
            assert line, self.errors()
            url = json.loads(line)["url"]
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with aiohttp.ClientSession(url, headers=headers) as http:
                life = Life(url, TOKEN, http, process)
                yield life
                if process.returncode is None:
                    await life.end(signal.SIGINT)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()
        assert "Traceback" not in self.errors(), self.errors()

    def errors(self) -> str:
        """What all lives said on standard error but for requests, the newest 4,000 characters of it."""
        log = self.data / "errors.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join(line for line in lines if "request  " not in line)[-4000:]

    def sandboxes(self) -> tuple[Record, ...]:
        """Those that there is a folder of."""
        return self._sandboxes.all()

    def sandbox(self, session_id: str) -> Record:
        """The one sandbox of a session."""
        (found,) = [record for record in self.sandboxes() if record.session_id == session_id]
        return found

    def workspace(self, session_id: str) -> Path:
        """Its files, seen from outside."""
        return files_of(self.folder(session_id))

    def folder(self, session_id: str) -> Path:
        """What the provider keeps of its sandbox."""
        return self.data / "sandboxes" / self.sandbox(session_id).sandbox_id

    def runner(self, session_id: str) -> int:
        """The pid of the runner: the one child of a sandbox's first process."""
        first = self.sandbox(session_id).inner
        assert first is not None
        (pid,) = [pid for pid in children(first.pid) if program(pid).startswith(RUNNER)]
        return pid

    def agents(self, session_id: str) -> list[int]:
        """The pids of a session's agent; one at most, if all is well. What it forks is not counted."""
        return [pid for pid in children(self.runner(session_id)) if program(pid) == AGENT]

    def inside(self, session_id: str) -> dict[int, str]:
        """All processes of a sandbox by pid, with the programs that they run."""
        first = self.sandbox(session_id).inner
        found = {pid: program(pid) for pid in family(first.pid)} if first is not None else {}
        return {pid: name for pid, name in found.items() if name}

    def journal(self, session_id: str) -> bytes:
        """What the runner keeps for whoever attaches."""
        return (self.folder(session_id) / "journal").read_bytes()

    def mirrored(self, session_id: str, text: str) -> bool:
        """Whether the runner holds an entry of the agent's memory with this text: it comes a moment later."""
        lines = self.journal(session_id).splitlines()
        return any(b'"k":"transcript"' in line and text.encode() in line for line in lines)

    def native(self, session_id: str) -> list[dict[str, Any]]:
        """The agent's own record of the conversation, as it stands in its sandbox."""
        home = files_of(self.folder(session_id), "home")
        (file,) = home.glob("agent-*/config/projects/*/*.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    async def transcript(self, session_id: str) -> Transcript:
        """The record that was kept of it; to be asked for while nobody serves."""
        store = SqlitePersistence(self.data / "agent-runtime.db")
        await store.open()
        try:
            return await store.load_transcript(session_id)
        finally:
            await store.close()

    async def leave_nothing(self) -> None:
        """End the sandboxes that a story left behind when it failed."""
        label = self.data / "runtime-id"
        provider = LocalSandboxes(self.data / "sandboxes")
        for ref in await provider.list(label.read_text().strip() if label.exists() else ""):
            await (await provider.attach(ref)).stop()


@asynccontextmanager
async def house(
    data: Path,
    *,
    scripts: Mapping[str, Script] | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
    **settings: Any,
) -> AsyncIterator[House]:
    """A folder to serve from, time and again; `settings` are those of a configuration file.

    Whatever happens in the block, no sandbox is left after it.
    """
    async with ScriptedModel(scripts=scripts or {}) as model:
        it = House(data, model, settings, environment)
        try:
            yield it
        except BaseException:
            sys.stderr.write(it.errors())  # the captured output of a story that failed
            raise
        finally:
            await it.leave_nothing()


def children(pid: int) -> list[int]:
    """Those that a process has now; none when it is gone."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in file.read_text().split()]
    return found


def family(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    for child in children(pid):
        yield from family(child)


def program(pid: int) -> str:
    """The file name of what a process runs; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().rpartition("/")[2]
    except OSError:
        return ""


async def until(probe: Callable[[], Coroutine[Any, Any, Any]], within: float = 20) -> Any:
    """The first truthy answer of a question that has to be asked over the wire."""
    deadline = asyncio.get_running_loop().time() + within
    while not (value := await probe()):
        assert asyncio.get_running_loop().time() < deadline, f"not true within {within} s"
        await asyncio.sleep(0.03)
    return value
