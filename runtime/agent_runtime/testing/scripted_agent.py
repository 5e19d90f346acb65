"""ScriptedAgent: an agent kind whose native lines are our own events, for fast and exact stories.

A line is `{"event": {...}}`, an event as JSON, or `{"report": ..., ...}`, one of the reports that a
translator gives. `line_of` writes both. It knows nothing of who plays the lines (`scripted_runner`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from agent_runtime.blocks import BLOCK, Block
from agent_runtime.errors import InvalidRequest
from agent_runtime.events import EVENT, BlockComplete, BlockStart, Event
from agent_runtime.ports import AgentStart
from agent_runtime.profile import AgentProfile
from agent_runtime.records import TurnError, TurnStatus
from agent_runtime.reports import (
    AgentIdentity,
    AgentTookIn,
    AgentTurnBegan,
    AgentTurnEnded,
    Translated,
)


class ScriptedAgent:
    """Implements `ports.Agent`. Session options: any but `refused`, which nobody may set."""

    @property
    def architecture(self) -> str:
        """`scripted`."""
        return "scripted"

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options are fine but one. Raises `InvalidRequest`."""
        if "refused" in options:
            raise InvalidRequest("Unknown session option 'refused'.")
        return dict(options)

    def start(
        self,
        profile: AgentProfile,
        options: Mapping[str, Any],
        *,
        agent_session_id: str | None,
        gateway_token: str,
    ) -> AgentStart:
        """What the runner is told."""
        told = {"profile": profile.profile_id, "resume": agent_session_id, "gatewayToken": gateway_token}
        return AgentStart("scripted", {**told, "options": dict(options)})

    @property
    def steers(self) -> bool:
        """A message in mid-turn is one more script that plays."""
        return True

    def translator(
        self,
        memory: Mapping[str, Any] | None = None,
    ) -> ScriptedTranslator:
        """A translator; of the past it knows only what is at work."""
        return ScriptedTranslator(memory or {})

    def read_transcript(self, transcript: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Block, ...]:
        """The entries that are blocks, in order."""
        return tuple(block for entries in transcript.values() for entry in entries for block in _block(entry))

    def remembers(self, transcript: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
        """Whether there is any entry."""
        return any(transcript.values())


class ScriptedTranslator:
    """Implements `ports.Translator`. A line `{"report": "at_work", "tasks": n}` sets `at_work`."""

    def __init__(self, memory: Mapping[str, Any]) -> None:
        self.at_work = int(memory.get("atWork", 0))

    def translate(
        self,
        line: Mapping[str, Any],
        *,
        turn_id: str | None,
        at: datetime,  # noqa: ARG002  events bring their own times
    ) -> Sequence[Translated]:
        """The event or the report of a line; nothing where it holds neither."""
        if line.get("report") == "at_work":
            self.at_work = int(line["tasks"])
        if "report" in line:
            return _report(line)
        try:
            event: Event = EVENT.validate_python({**line.get("event", {}), "turnId": turn_id})
        except (TypeError, ValueError):
            return ()
        if isinstance(event, BlockStart | BlockComplete):
            block = event.block.model_copy(update={"turn_id": turn_id})
            return (event.model_copy(update={"block": block}),)
        return (event,)

    def memory(self) -> dict[str, Any]:
        """What is at work."""
        return {"atWork": self.at_work}


def line_of(told: Translated) -> dict[str, Any]:
    """The native line that is translated to this."""
    match told:
        case AgentIdentity():
            return {"report": "identity", "agentSessionId": told.agent_session_id}
        case AgentTurnBegan():
            return {"report": "began"}
        case AgentTookIn():
            return {"report": "took_in", "messageId": told.message_id}
        case AgentTurnEnded():
            return {
                "report": "ended",
                "status": told.status.value,
                "stopReason": told.stop_reason,
                "error": told.error.to_json() if told.error else None,
                "totalCostUsd": told.total_cost_usd,
                "messageIds": list(told.message_ids),
                "autonomous": told.autonomous,
            }
        case _:
            return {"event": told.to_json()}


def _report(line: Mapping[str, Any]) -> Sequence[Translated]:
    match line:
        case {"report": "identity", "agentSessionId": str(agent_session_id)}:
            return (AgentIdentity(agent_session_id),)
        case {"report": "began"}:
            return (AgentTurnBegan(),)
        case {"report": "took_in", "messageId": str(message_id)}:
            return (AgentTookIn(message_id),)
        case {"report": "ended", "status": ("completed" | "failed" | "cancelled") as status}:
            error = line.get("error")
            return (
                AgentTurnEnded(
                    status=TurnStatus(status),
                    stop_reason=line.get("stopReason"),
                    error=TurnError.model_validate(error) if error else None,
                    total_cost_usd=line.get("totalCostUsd"),
                    message_ids=tuple(line.get("messageIds") or ()),
                    autonomous=line.get("autonomous") is True,
                ),
            )
    return ()


def _block(entry: Mapping[str, Any]) -> tuple[Block, ...]:
    try:
        return (BLOCK.validate_python(entry),)
    except ValueError:
        return ()
