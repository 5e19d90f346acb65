"""Attachment: the sandbox that a session is attached to: its link, feed and reader, and its passages.

What a session does with a living sandbox is here: hand over a message, interrupt, bring files in,
say goodbye, detach, leave. How one comes to be is in `wake`; when each of these is done is decided by
`lifecycle` and performed by `performer`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog

from agent_runtime.agent_feed import UNEXPECTED
from agent_runtime.blocks import Content
from agent_runtime.errors import RuntimeFault, SandboxFault
from agent_runtime.passages import Passages
from agent_runtime.records import SandboxStatus, TurnError
from agent_runtime.runner_feed import RunnerFeed
from agent_runtime.runner_link import RunnerLink

_log = structlog.get_logger(__name__)

_SYNC_TIMEOUT_S: Final = 60.0
"""A full look at a large workspace; beyond it a turn ends with what is known."""
AGENT_END_S: Final = 15.0
"""A runner ends by force what does not end politely within 10 s."""
_GOODBYE_TIMEOUT_S: Final = 5.0
"""For the agent's polite end before its sandbox is stopped; it needs 30 ms."""
_TURNS_EXPECTED: Final = 100
"""More than can be under way or wait."""


class Attachment:
    """One sandbox while a session has it. `lost` says why it is of no more use, once it is.

    `tasks` are those that listen and watch; their owner adds them.
    """

    def __init__(self, session_id: str, link: RunnerLink, feed: RunnerFeed) -> None:
        self.link = link
        self.feed = feed
        self.passages = Passages(link.sandbox)
        self.lost: TurnError | None = None
        self._seen_before: dict[str, int] = {}
        self._taken_over: set[str] = set()
        self.tasks: list[asyncio.Task[None]] = []
        self._hushing = False
        self._session_id = session_id

    def untouched(self, turn_id: str | None) -> bool:
        """Whether nothing was said or done since this turn's message was handed over, if it was."""
        if turn_id is None or turn_id in self._taken_over:
            return False
        return self._seen_before.get(turn_id, self.link.seen) == self.link.seen

    def expect(self, turn_id: str) -> None:
        """A turn's message is about to be handed over, for the first time or once more."""
        self._seen_before.setdefault(turn_id, self.link.seen)
        if len(self._seen_before) > _TURNS_EXPECTED:
            self._seen_before.pop(next(iter(self._seen_before)))

    def take_over(self, turn_id: str) -> None:
        """A turn's message may have been handed over by an earlier process: who knows what came of it."""
        self._taken_over.add(turn_id)

    async def listen(self) -> TurnError:
        """Read until the sandbox is of no more use; returns why, which is `lost` from then on."""
        try:
            await self.feed.run()
        except SandboxFault as fault:
            error = turn_error(fault)
        except Exception:
            _log.exception("feed_failed", session_id=self._session_id)
            error = UNEXPECTED
        await self.link.close()  # nobody reads any more: whoever waits for a reply must know
        self.lost = self.lost or error
        return self.lost

    async def deliver(self, turn_id: str, content: Content, *, note: str | None = None) -> None:
        """Hand a message over, behind a note of ours if there is one. Raises `SandboxFault`."""
        native = content if isinstance(content, str) else [part.to_json() for part in content]
        if note is not None:
            said = [{"type": "text", "text": native}] if isinstance(native, str) else native
            native = [{"type": "text", "text": note}, *said]
        reply = await self.link.command("message", uuid=turn_id, content=native)
        if isinstance(reply, dict) and reply.get("duplicate") is False:
            self._taken_over.discard(turn_id)  # the agent did not have it before now

    async def change_options(self, options: dict[str, Any]) -> None:
        """Have the running agent follow. Raises `SandboxFault`."""
        await self.link.command("options", options=options)

    async def interrupt(self, grace_s: float) -> None:
        """Ask the agent to stop; returns when the grace is over."""
        deadline = asyncio.get_running_loop().time() + grace_s
        try:
            await self.link.command("interrupt", timeout_s=grace_s)
        except SandboxFault as fault:
            _log.info("interrupt_unanswered", session_id=self._session_id, code=fault.code)
        await asyncio.sleep(max(0.0, deadline - asyncio.get_running_loop().time()))

    async def hush(self) -> None:
        """End what the agent has at work beside its turns; asked again meanwhile, once is enough."""
        if self._hushing:
            return
        self._hushing = True
        try:
            await self.link.command("interrupt")
        except SandboxFault as fault:
            _log.info("interrupt_unanswered", session_id=self._session_id, code=fault.code)
        finally:
            self._hushing = False

    async def settle(self) -> None:
        """Bring the workspace's present state in, where there is still somebody to ask."""
        if self.link.silent:
            return
        try:
            await self.feed.settle(_SYNC_TIMEOUT_S)
        except SandboxFault as fault:
            _log.info("sync_unanswered", session_id=self._session_id, code=fault.code)

    async def say_goodbye(self) -> None:
        """End the agent politely, and whoever else works inside; bring in what they left behind."""
        await self.passages.cut()
        if self.link.silent:
            return
        try:
            await self.end_agent(_GOODBYE_TIMEOUT_S)
        except SandboxFault as fault:
            _log.info("goodbye_unanswered", session_id=self._session_id, code=fault.code)
        await self.settle()

    async def end_agent(self, timeout_s: float = AGENT_END_S) -> None:
        """End the agent's process and keep the sandbox. Raises `SandboxFault`."""
        await self.link.command("close", timeout_s=timeout_s)

    async def detach(self) -> None:
        """Disconnect and stop reading; the sandbox goes on. Idempotent."""
        self.feed.mute()
        self.feed.caught_up.set()  # there will be no more
        await self.feed.quiet()  # what is in the log must be in the fold
        await self.passages.cut()
        await self.link.close()
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)

    async def leave(self) -> None:
        """Detach and end the sandbox. Idempotent; raises no `RuntimeFault`."""
        await self.detach()
        try:
            await self.link.sandbox.stop()
        except RuntimeFault as fault:
            # Its label stays: whoever looks for leftovers of this runtime finds it.
            _log.warning("sandbox_not_stopped", session_id=self._session_id, code=fault.code)

    def status(self, *, starting: bool, restart_count: int) -> SandboxStatus:
        """The sandbox as clients see it."""
        ref = self.link.sandbox.ref
        return SandboxStatus(
            sandbox_id=ref.sandbox_id,
            provider=ref.provider,
            isolation=ref.isolation,
            status="starting" if starting else "ready",
            restart_count=restart_count,
            started_at=ref.started_at,
            expires_at=self.link.sandbox.expires_at,
        )


def turn_error(fault: RuntimeFault) -> TurnError:
    """Why a turn failed, from the fault that made it fail."""
    return TurnError(code=fault.code, message=fault.detail, retryable=fault.retryable)
