"""Messages: what becomes of those that the agent was given, by its own account.

A message is queued, then started with a turn or taken into one, whose result names it. An interrupt
also cancels what only waits: that is named in no result, and so its end is told from here.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent_runtime.records import TurnStatus
from agent_runtime.reports import AgentTookIn, AgentTurnEnded
from agent_runtime_adapters.agents.claude.lines import Json, ident
from agent_runtime_adapters.agents.claude.memory import MAX_MESSAGES, Memory, MessageWaiting
from agent_runtime_adapters.agents.claude.writing import Writing


class Messages:
    """The messages that no result has named yet; the oldest is forgotten first."""

    def __init__(self, memory: Memory) -> None:
        self._started = {kept.message_id: kept.started for kept in memory.messages}
        self._in_turn = memory.in_turn

    def memory(self) -> tuple[list[MessageWaiting], bool]:
        """All that is known of them, and whether a turn is under way."""
        waiting = [
            MessageWaiting(message_id=uuid, started=started) for uuid, started in self._started.items()
        ]
        return waiting, self._in_turn

    def began(self) -> None:
        """A turn is under way: its result will come."""
        self._in_turn = True

    def ended(self, message_ids: Iterable[str]) -> None:
        """A result came and named these."""
        self._in_turn = False
        for message_id in message_ids:
            self._started.pop(message_id, None)

    def moved(self, line: Json, writing: Writing) -> None:
        """Read a `command_lifecycle` line."""
        message_id, state = ident(line.get("command_uuid")), ident(line.get("state"))
        if message_id is None:
            return
        if state in {"queued", "started"}:
            while message_id not in self._started and len(self._started) >= MAX_MESSAGES:
                del self._started[next(iter(self._started))]
            self._started[message_id] = state == "started"
            if state == "started" and self._in_turn:
                writing.out.append(AgentTookIn(message_id))
            return
        started = self._started.pop(message_id, None)
        if state == "cancelled" and started is not None and not (started and self._in_turn):
            ended = AgentTurnEnded(TurnStatus.CANCELLED, stop_reason="interrupted", message_ids=(message_id,))
            writing.out.append(ended)
