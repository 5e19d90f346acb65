"""The provider's end of a trunk: one process inside a sandbox that carries all connections to it.

It is opened again when it breaks while the sandbox lives: an agent that waits for its model is not to
wait for somebody to connect. Connections end with the trunk that carried them; the runner's journal
is behind them. The protocol is `multiplex`, the other end `agent_runtime_sandbox.trunk`; what is
carried to the gateway is joined here to the runtime's own socket, so nothing of the runtime need be
reachable from Modal, and no key enters it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import modal
import structlog
from modal.stream_type import StreamType

from agent_runtime.errors import SandboxFault
from agent_runtime_adapters.sandboxes.modal.calls import GONE, call, translated
from agent_runtime_sandbox.multiplex import Broken, Kind, Multiplex, Purpose, Stream, splice
from agent_runtime_sandbox.trunk import BEAT_S, SILENCE_S

WRITE_WITHIN_S: Final = 30.0
"""The other end reads at once whatever is written: one that does not is not there."""
_PAUSES_S: Final = (0.1, 0.5, 2.0, 5.0)
"""Between the end of a trunk and the next one; the last again and again."""

_TRUNKS_TRIED: Final = 3
MAX_JOINED: Final = 128
"""Connections to the gateway at a time, more than it takes of one session: each costs this process
descriptors, also one that the other end has given up while it is being made."""

_log = structlog.get_logger(__name__)


class Place(Protocol):
    """The sandbox that a trunk leads into."""

    async def handle(self) -> modal.Sandbox:
        """The SDK's object. Raises `SandboxFault`."""
        ...

    async def alive(self) -> bool:
        """Whether it runs. Raises `SandboxFault`."""
        ...

    def renew(self) -> None:
        """Take a new handle the next time: an old one may know an old way, or an old token."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where the other end finds things, what it runs on, and where requests for the model go.

    `gateway` is the runtime's socket, None where this process serves no model.
    """

    python: str
    control: str
    gateway_inside: str
    gateway: Path | None
    start_within_s: float
    call_within_s: float
    silence_s: float = SILENCE_S

    def command(self) -> tuple[str, ...]:
        """What is run inside."""
        serves = ("--gateway", self.gateway_inside) if self.gateway is not None else ()
        return (
            *(self.python, "-P", "-s", "-m", "agent_runtime_sandbox.trunk", "--control", self.control),
            *("--silence", f"{self.silence_s:g}", *serves),
        )


class Trunk:
    """All connections of this process into one sandbox. Somebody must `run` it."""

    def __init__(self, place: Place, route: Route) -> None:
        self._place = place
        self._route = route
        self._multiplex: Multiplex | None = None
        self._fault: SandboxFault | None = None
        self._changed = asyncio.Condition()
        self._over = False
        self._closing = False

    async def run(self) -> None:
        """Keep a trunk open until the sandbox is gone. Raises nothing of Modal's."""
        attempts = 0
        try:
            while True:
                fault, was_ready = await self._once()
                await self._note(None, fault)
                attempts = 0 if was_ready else attempts + 1
                self._place.renew()
                if not await self._may_go_on(fault):
                    return
                _log.info("trunk_broke", detail=fault.detail, cause=type(fault.__cause__).__name__)
                await asyncio.sleep(_PAUSES_S[min(attempts, len(_PAUSES_S) - 1)])
        finally:
            self._over = True
            await self._note(None, self._fault or SandboxFault(GONE, code="sandbox_lost"))

    def close(self) -> None:
        """Whoever runs it is about to cancel it."""
        self._closing = True

    async def connect(self) -> Stream:
        """A stream to the runner, over another trunk where one breaks meanwhile. Raises `SandboxFault`."""
        for _ in range(_TRUNKS_TRIED):
            multiplex = await self.ready()
            try:
                return await self._opened(multiplex.open(Purpose.RUNNER))
            except TimeoutError as error:
                raise SandboxFault("The sandbox does not answer.", code="sandbox_timeout") from error
            except Broken:
                if not multiplex.broken:
                    break
                await self._until_noted(multiplex)
        raise SandboxFault("The sandbox takes no connection.", code="sandbox_lost")

    async def _opened(self, stream: Stream) -> Stream:
        try:
            async with asyncio.timeout(self._route.call_within_s):
                await stream.opened()
        except BaseException:
            stream.reset()
            raise
        return stream

    async def ready(self) -> Multiplex:
        """The open trunk, as soon as there is one. Raises `SandboxFault` where there will be none.

        One that breaks or could not be opened is waited for again, as long as one may take to open.
        """
        async with self._changed:
            try:
                async with asyncio.timeout(self._route.start_within_s):
                    await self._changed.wait_for(lambda: self._multiplex or self._over)
            except TimeoutError as error:
                late = SandboxFault("The sandbox does not answer.", code="sandbox_timeout")
                raise self._fault or late from error
            if self._multiplex is None:
                raise self._fault or SandboxFault(GONE, code="sandbox_lost")
            return self._multiplex

    async def _until_noted(self, broken: Multiplex) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._multiplex is not broken)

    async def ask_to_end(self) -> None:
        """Have the runner end its agent and itself. Raises `SandboxFault`."""
        (await self.ready()).queue(Kind.TERMINATE, 0, 0)

    async def _once(self) -> tuple[SandboxFault, bool]:
        """Open one and serve it to its end: why it ended, and whether it had been ready."""
        multiplex: Multiplex | None = None
        fault = SandboxFault("The connection into the sandbox broke.", code="sandbox_lost")
        try:
            process = await self._start()
            try:
                async with asyncio.TaskGroup() as tasks:
                    multiplex = Multiplex(outside=True, accept=self._accepting(tasks))
                    tasks.create_task(multiplex.pump(_writing(process)), name="pump")
                    tasks.create_task(_read(process, multiplex), name="read")
                    tasks.create_task(self._beat(multiplex), name="beat")
                    await self._until_ready(multiplex)
                    await self._note(multiplex, None)
            finally:
                if multiplex is not None:
                    multiplex.break_off()
                    if multiplex.taken_over:
                        self._route = replace(self._route, gateway=None)
                await _let_go(process)
        except* SandboxFault as faults:
            fault = _first(faults)
        except* Broken:
            pass
        if self._closing:
            raise asyncio.CancelledError  # a group that is cancelled tells of its failures alone
        return fault, multiplex is not None and multiplex.ready.is_set()

    async def _start(self) -> Any:
        handle = await self._place.handle()
        return await call(
            handle.exec.aio(*self._route.command(), stderr=StreamType.DEVNULL, text=False),
            self._route.start_within_s,
        )

    async def _until_ready(self, multiplex: Multiplex) -> None:
        try:
            async with asyncio.timeout(self._route.start_within_s):
                await multiplex.ready.wait()
        except TimeoutError as error:
            raise SandboxFault("The sandbox's runner does not come up.", code="sandbox_timeout") from error

    async def _beat(self, multiplex: Multiplex) -> None:
        """Say and expect signs of life: a router that is gone does not end our streams by itself."""
        clock = asyncio.get_running_loop().time
        heard, since = multiplex.beats, clock()
        while True:
            await asyncio.sleep(min(BEAT_S, self._route.silence_s / 4))
            multiplex.queue(Kind.BEAT, 0, 0)
            if multiplex.beats != heard:
                heard, since = multiplex.beats, clock()
            elif multiplex.ready.is_set() and clock() - since > self._route.silence_s:
                raise Broken

    def _accepting(self, tasks: asyncio.TaskGroup) -> Callable[[Stream], None] | None:
        return None if self._route.gateway is None else joining(tasks, self._route.gateway)

    async def _may_go_on(self, fault: SandboxFault) -> bool:
        """Whether there is a sandbox to open another trunk into; when nobody can tell, there may be."""
        try:
            if await self._place.alive():
                return True
        except SandboxFault as away:
            if away.code != "sandbox_lost":
                return True
        self._fault = SandboxFault(GONE, code="sandbox_lost")
        _log.debug("trunk_over", detail=fault.detail)
        return False

    async def _note(self, multiplex: Multiplex | None, fault: SandboxFault | None) -> None:
        async with self._changed:
            self._multiplex, self._fault = multiplex, fault
            self._changed.notify_all()


def joining(tasks: asyncio.TaskGroup, gateway: Path) -> Callable[[Stream], None]:
    """What takes the streams that the other end opens, and joins each to the gateway's socket.

    Raises `Broken` for one that wants to go elsewhere.
    """
    joined: set[asyncio.Task[None]] = set()

    def accept(stream: Stream) -> None:
        if stream.purpose != Purpose.GATEWAY:
            raise Broken
        if len(joined) >= MAX_JOINED:
            stream.reset()
            return
        task = tasks.create_task(_join_gateway(stream, gateway), name="to the gateway")
        joined.add(task)
        task.add_done_callback(joined.discard)

    return accept


async def _join_gateway(stream: Stream, gateway: Path) -> None:
    try:
        reader, writer = await asyncio.open_unix_connection(str(gateway))
    except OSError:
        stream.reset()
        return
    await splice(stream, reader, writer)


def _writing(process: Any) -> Any:
    """One writer: what is written while something is being drained would be lost."""

    async def write(data: bytes) -> None:
        try:
            process.stdin.write(data)
        except (ValueError, BufferError) as error:
            raise translated(error) from error
        await call(process.stdin.drain.aio(), WRITE_WITHIN_S)

    return write


async def _read(process: Any, multiplex: Multiplex) -> None:
    """One reader, which never waits for anybody: an output that is not read stalls the whole sandbox."""
    try:
        async for data in process.stdout:
            multiplex.feed(data)
    except Broken:
        raise
    except Exception as error:
        raise translated(error) from error
    raise Broken


async def _let_go(process: Any) -> None:
    """End the process inside: it has no other way to be told than the end of its input."""
    with suppress(SandboxFault, ValueError):
        process.stdin.write_eof()
        await call(process.stdin.drain.aio(), 2.0)


def _first(faults: BaseExceptionGroup[SandboxFault]) -> SandboxFault:
    for error in faults.exceptions:
        if isinstance(error, SandboxFault):
            return error
        if isinstance(error, BaseExceptionGroup):
            return _first(error)
    raise AssertionError("a group of nothing")
