"""The place of the agent: none, one that runs, or one that has ended; and what it says as frames.

At most one agent runs at a time. Messages reach it in order and each uuid once. The runner next
door knows connections and commands; the drivers know one agent kind each.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from agent_runtime_sandbox import drivers, process
from agent_runtime_sandbox.drivers import AgentEnd, Driver, DriverError, Places
from agent_runtime_sandbox.outbox import Outbox

KILL_AFTER_S: Final = 10.0
"""How long an agent may take to end politely."""
_REMEMBERED_UUIDS: Final = 10_000
_STDERR_LINE_CHARS: Final = 8 * 1024
_STDERR_BUDGET_CHARS: Final = 1024 * 1024


class AgentOutput:
    """What a driver says, as kept frames. The complaints of one agent process are bounded."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._stderr_left = _STDERR_BUDGET_CHARS

    async def line(self, line: dict[str, Any]) -> None:
        """A native line."""
        await self.lines((line,))

    async def lines(self, lines: Sequence[dict[str, Any]]) -> None:
        """Native lines that came at once: one write into the journal, one to whoever is attached."""
        while not self.take(lines):
            await self._outbox.room()

    def take(self, lines: Sequence[dict[str, Any]]) -> bool:
        """The same where there is room, without a task that waits."""
        if not self._outbox.has_room:
            return False
        self._outbox.emit_all("agent", [{"line": line} for line in lines])
        return True

    def transcript(self, key: str, entries: Sequence[dict[str, Any]]) -> None:
        """Does not wait: the agent's lines, which do, hold back the transcript too."""
        self._outbox.emit("transcript", key=key, entries=list(entries))

    def stderr(self, text: str) -> None:
        """A line of complaint, cut to 8 Ki characters, until a mebi of them has been said."""
        if self._stderr_left <= 0:
            return
        text = text[:_STDERR_LINE_CHARS]
        self._stderr_left -= len(text)
        self._outbox.emit("stderr", text=text if self._stderr_left > 0 else f"{text}\n[no more is kept]")


class AgentPlace:
    """Starts, serves and ends agents; `tasks` owns the task that follows a running one.

    Args:
        spared: leaders of kernel sessions that are not the agent's, and do not end with it.
    """

    def __init__(
        self,
        outbox: Outbox,
        places: Places,
        tasks: asyncio.TaskGroup,
        *,
        spared: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._outbox = outbox
        self._places = places
        self._tasks = tasks
        self._spared = spared
        self._driver: Driver | None = None
        self._starting = False
        self._closing = False
        self._ended = asyncio.Event()
        self._ended.set()
        self._memory: dict[str, list[dict[str, Any]]] = {}
        self._uuids: OrderedDict[str, None] = OrderedDict()
        self.state = "none"

    def remember(self, key: str, entries: Sequence[dict[str, Any]]) -> None:
        """Transcript entries for the next start."""
        self._memory.setdefault(key, []).extend(entries)

    async def start(self, name: str, options: Mapping[str, Any]) -> None:
        """Start an agent. Raises `DriverError`; a failure is told by an `exit` frame as well."""
        if self._starting or self._driver is not None:
            raise DriverError("agent_running", "an agent runs already")
        self._starting = True
        memory, self._memory = self._memory, {}
        early = self._places.early
        try:
            if early is not None and not (early.waits and early.wanted == (name, options)):
                await self._end_early()  # before anything of this one is there
            make = await asyncio.to_thread(drivers.load, name)
            driver = make(AgentOutput(self._outbox), self._places)
            info = await driver.start(options, memory)
        except DriverError as error:
            self.state = "exited"
            self._outbox.emit("exit", code=None, reason="start_failed", message=str(error))
            raise
        finally:
            await self._end_early()
            self._starting = False
        self._begin(driver)
        self._outbox.emit("started", driver=name, info=info)
        self._tasks.create_task(self._follow(driver), name="agent")

    async def nobody_starts(self) -> None:
        """Whoever would have started an agent is gone: one that was started early ends, if it still waits."""
        if not self._starting:
            await self._end_early()

    async def message(self, uuid: str, content: str | list[Any]) -> bool:
        """Hand over a message; False when this uuid was handed over before. Raises `DriverError`.

        One that is refused never reached this agent: an agent that is about to end takes no more.
        """
        if uuid in self._uuids:
            return False
        driver = self._running()
        if self._closing:
            raise DriverError("agent_not_running", "the agent is about to end")
        self._uuids[uuid] = None
        if len(self._uuids) > _REMEMBERED_UUIDS:
            self._uuids.popitem(last=False)
        try:
            await driver.message(uuid, content)
        except DriverError:
            self._uuids.pop(uuid, None)
            raise
        return True

    async def interrupt(self) -> None:
        """Stop what runs. Raises `DriverError`."""
        await self._running().interrupt()

    async def configure(self, options: Mapping[str, Any]) -> None:
        """Change options. Raises `DriverError`."""
        await self._running().configure(options)

    async def close(self) -> None:
        """End the agent politely, and by force when it takes too long; return after its `exit`."""
        driver = self._driver
        if driver is None:
            return
        self._closing = True
        try:
            async with asyncio.timeout(KILL_AFTER_S):
                await driver.close()
                await self._ended.wait()
        except TimeoutError:
            driver.kill()
            await self._ended.wait()

    def busy_pids(self) -> Collection[int] | None:
        """Processes that the driver waits for; None while they are not known."""
        if self._starting:
            return None
        early = self._places.early.pids if self._places.early is not None else ()
        return (*early, *(self._driver.pids() if self._driver is not None else ()))

    def end_if_stopped(self) -> None:
        """Kill an agent that was stopped: nobody but a tool of its own does that, and nothing would end."""
        if self._driver is not None and any(map(process.is_stopped, self._driver.pids())):
            self._outbox.emit("stderr", text="[something in the sandbox stopped the agent: it is killed]")
            self._driver.kill()

    async def _end_early(self) -> None:
        if self._places.early is not None and self._places.early.pids:
            await asyncio.to_thread(self._places.early.drop)

    def _begin(self, driver: Driver) -> None:
        self._driver = driver
        self._closing = False
        self._uuids.clear()
        self._ended.clear()
        self.state = "running"

    def _running(self) -> Driver:
        if self._driver is None:
            raise DriverError("agent_not_running", "no agent runs")
        return self._driver

    async def _follow(self, driver: Driver) -> None:
        end = AgentEnd(None, "cancelled")
        try:
            end = await driver.run()
        finally:
            await asyncio.to_thread(process.end_leftovers, self._spared)
            self._driver = None
            self.state = "exited"
            reason = "closed" if self._closing else "died"
            self._outbox.emit("exit", code=end.code, reason=reason, message=end.message)
            self._ended.set()
