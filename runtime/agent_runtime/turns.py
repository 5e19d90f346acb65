"""Turns: accepted, begun and ended exactly once each, durable before anybody is told.

Here is what a turn *is* over time: its record, its user message, its events. When it may begin and
why it ends is decided by `lifecycle`; `session` calls the methods in the order of the effects. At
most one turn is under way; one that never ran may begin and end beside it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from agent_runtime.blocks import BlockState, Content, TextPart, UserMessage
from agent_runtime.clock import now
from agent_runtime.errors import RateLimited
from agent_runtime.events import BlockComplete, BlockStart, Event, TurnEnd, TurnStart
from agent_runtime.ports import PersistenceAdapter
from agent_runtime.recorder import Recorder
from agent_runtime.records import QueuedMessage, Turn, TurnStatus
from agent_runtime.reports import AgentTurnEnded

_PREVIEW_CHARS: Final = 200
MAX_WAITING: Final = 50
"""Messages of one session that may wait; they are held in memory. A person does not type as many."""
MOST_REMEMBERED: Final = 200
"""Message ids of one session; with more of them the store is asked for each that comes."""
_CLOSED_BY: Final = {
    TurnStatus.COMPLETED: "The agent gave no result.",
    TurnStatus.CANCELLED: "Interrupted.",
    TurnStatus.FAILED: "The turn failed before this tool gave a result.",
}


class Turns:
    """The turns of one session that are not over: queued ones, and the one under way (`current`).

    `said` is the message that the current turn answers. `is_new`: nobody before could have accepted a message
    of this session, so that one whose id was never seen here is new.
    """

    def __init__(
        self,
        recorder: Recorder,
        persistence: PersistenceAdapter,
        *,
        next_index: int,
        is_new: bool = False,
    ) -> None:
        self.current: Turn | None = None
        self.said: Content = ""
        self._recorder = recorder
        self._persistence = persistence
        self._next_index = next_index
        self._total_cost_usd = recorder.record.cost_usd or 0.0
        self._waiting: dict[str, Turn] = {}
        self._message_ids: set[str] | None = set() if is_new else None
        self._accepting = asyncio.Lock()

    async def accept(
        self, content: Content, message_id: str | None, *, admit: Callable[[], None]
    ) -> tuple[Turn, bool]:
        """Make a message durable as a queued turn; returns the turn and whether it was known already.

        `admit` is asked after the message turned out to be new and may raise.
        Raises `RateLimited` (`queue_full`), and `PersistenceFault` when the store does not answer:
        whether the message arrived there is unknown then, and sending it again is safe.
        """
        async with self._accepting:
            if message_id is not None:
                known = await self._find(message_id)
                if known is not None and self._was_taken_up(known):
                    return known, True
                if known is not None:
                    self._waiting[known.turn_id] = known
                    return known, False
            admit()
            if len(self._waiting) >= MAX_WAITING:
                raise RateLimited("Too many messages wait already.", code="queue_full")
            turn = Turn(
                turn_id=str(uuid.uuid4()),
                index=self._next_index,
                message_id=message_id or str(uuid.uuid4()),
                status=TurnStatus.QUEUED,
                content=content,
                started_at=now(),
            )
            self._next_index += 1  # counts also when saving fails: it may have been saved all the same
            self._remember(turn.message_id)
            await self._recorder.calls.once(
                lambda: self._persistence.save_turn(self._recorder.session_id, turn)
            )
            self._waiting[turn.turn_id] = turn
            return turn, False

    @property
    def accepting(self) -> bool:
        """Whether a message is just being made durable."""
        return self._accepting.locked()

    def _remember(self, message_id: str | None) -> None:
        if self._message_ids is not None and message_id is not None:
            self._message_ids.add(message_id)
            if len(self._message_ids) > MOST_REMEMBERED:
                self._message_ids = None

    async def _find(self, message_id: str) -> Turn | None:
        """The turn that a message began. The store is not asked where all messages are remembered.

        They are from a session's first one on, while it stays in memory. To ask took a twentieth of a turn.
        """
        if self._message_ids is not None and message_id not in self._message_ids:
            return None
        return await self._recorder.calls.once(
            lambda: self._persistence.find_turn(self._recorder.session_id, message_id)
        )

    def _was_taken_up(self, turn: Turn) -> bool:
        """False for a queued turn that nobody here knows: the store took it and failed to say so."""
        return turn.status is not TurnStatus.QUEUED or turn.turn_id in self._waiting

    def resume(self, turn: Turn) -> None:
        """Take up a queued turn that was accepted before the session was loaded."""
        self._waiting[turn.turn_id] = turn

    def go_on(self, turn: Turn, said: Content) -> None:
        """Take up the turn that was under way when an earlier process ended."""
        self.current, self.said = turn, said

    def waiting(self, turn_id: str) -> Content | None:
        """What a queued turn is going to say; None where it is not queued."""
        turn = self._waiting.get(turn_id)
        return turn.content if turn is not None else None

    def queue(self, turn_ids: Iterable[str]) -> tuple[QueuedMessage, ...]:
        """These queued turns as viewers see them."""
        turns = [self._waiting[turn_id] for turn_id in turn_ids if turn_id in self._waiting]
        return tuple(
            QueuedMessage(message_id=turn.message_id or "", preview=_preview(turn.content or ""))
            for turn in turns
        )

    async def begin(self, turn_id: str, **changes: Any) -> None:
        """Make the turn the current one, durably, and tell of it; `said` is then its message.

        An unknown id is a turn that the agent began by itself: it has no message. `changes` of the
        session's record become durable with the turn.
        """
        present = now()
        queued = self._waiting.get(turn_id)
        if queued is None:
            turn = Turn(
                turn_id=turn_id, index=self._next_index, status=TurnStatus.RUNNING, started_at=present
            )
            self._next_index += 1
            await self._recorder.save_turn(turn, **changes)
            self.current = turn
            await self._recorder.publish([TurnStart(turn=turn, turn_id=turn_id)])
            return
        turn = queued.model_copy(
            update={"status": TurnStatus.RUNNING, "started_at": present, "content": None}
        )
        self.said = queued.content or ""
        async with self._saved_with_message(turn, self.said, **changes) as block:
            self.current = turn
            await self._recorder.publish(_begun(turn, block))

    async def end_unbegun(self, turn_id: str, report: AgentTurnEnded) -> None:
        """End a turn that never ran, durably, and tell of it: begin, message and end at once."""
        queued = self._waiting.get(turn_id)
        if queued is None:
            return
        begun = queued.model_copy(update={"status": TurnStatus.RUNNING, "content": None})
        turn = self._ended(begun, report)
        async with self._saved_with_message(turn, queued.content or "") as block:
            await self._recorder.publish([*_begun(begun, block), TurnEnd(turn=turn, turn_id=turn_id)])

    @asynccontextmanager
    async def _saved_with_message(
        self, turn: Turn, content: Content, **changes: Any
    ) -> AsyncIterator[UserMessage]:
        """Save a turn that waits no more together with its user message, which is to be told within."""
        block = UserMessage(
            id=turn.turn_id,
            turn_id=turn.turn_id,
            timestamp=now(),
            content=content,
            message_id=turn.message_id or "",
        )
        async with self._recorder.place(block) as stored:
            await self._recorder.save_turn(turn, [stored], **changes)
            # Not before: until then the store calls it queued, and a repeated send would queue it again.
            self._waiting.pop(turn.turn_id, None)
            yield block

    async def end(
        self,
        turn_id: str,
        report: AgentTurnEnded,
        *,
        everything: bool,
        settle: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        """Close what is open, let `settle` bring files in, persist all, and tell of the end.

        `everything` closes subagents in the background as well: their process is gone. What `settle`
        returns are changes of the session's record; they become durable with the turn's end, once all
        that was known when it returned is durable.
        """
        assert self.current is not None
        assert self.current.turn_id == turn_id
        recorder = self._recorder
        await self.close_open(report.status, everything=everything)
        changes = await settle()
        turn = self._ended(self.current, report)
        await recorder.save_end(
            turn,
            **changes,
            last_activity=turn.ended_at,
            cost_usd=report.total_cost_usd if report.total_cost_usd is not None else recorder.record.cost_usd,
            model=report.model or recorder.record.model,
        )
        self.current = None
        await recorder.publish([TurnEnd(turn=turn, turn_id=turn_id)])

    async def close_open(self, why: TurnStatus, *, everything: bool) -> None:
        """Leave no block open and no tool call unanswered."""
        turn_id = self.current.turn_id if self.current else None
        closing = self._recorder.conversation.close_open(
            at=now(), turn_id=turn_id, reason=_CLOSED_BY[why], everything=everything
        )
        await self._recorder.publish(closing)

    def _ended(self, turn: Turn, report: AgentTurnEnded) -> Turn:
        return turn.model_copy(
            update={
                "status": report.status,
                "stop_reason": report.stop_reason,
                "error": report.error,
                "ended_at": now(),
                "usage": report.usage,
                "cost_usd": self._cost(report),
                "model": report.model,
            }
        )

    def _cost(self, report: AgentTurnEnded) -> float | None:
        """This turn's share of the agent's cumulative cost; a total that fell back was begun anew."""
        if report.total_cost_usd is None:
            return None
        grown = report.total_cost_usd - self._total_cost_usd
        self._total_cost_usd = report.total_cost_usd
        return round(grown if grown >= 0 else report.total_cost_usd, 10)


def _begun(turn: Turn, message: UserMessage) -> list[Event]:
    """How a turn begins that has a message."""
    opened = message.model_copy(update={"state": BlockState.STREAMING})
    where = {"turn_id": turn.turn_id, "conversation_id": message.conversation_id}
    return [
        TurnStart(turn=turn, turn_id=turn.turn_id),
        BlockStart(block=opened, **where),
        BlockComplete(block_id=message.id, block=message, **where),
    ]


def _preview(content: Content) -> str:
    if isinstance(content, str):
        return content[:_PREVIEW_CHARS]
    text = " ".join(part.text if isinstance(part, TextPart) else "[image]" for part in content)
    return text[:_PREVIEW_CHARS]
