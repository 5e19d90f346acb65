"""Reports: what an agent's lines tell of the agent itself, beside the events that they tell of.

A translator (`ports`) gives them, `runner_feed` brings them up in their place among the events, and
`lifecycle` decides what follows. Values only.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent_runtime.events import Event
from agent_runtime.records import TurnError, TurnStatus, Usage


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """The agent told its own session id; it is needed to resume."""

    agent_session_id: str


@dataclass(frozen=True, slots=True)
class AgentTurnBegan:
    """The agent began to work, on a message or by itself."""


@dataclass(frozen=True, slots=True)
class AgentTurnEnded:
    """The agent rests. `total_cost_usd` is cumulative for the agent's session; `usage` is this turn's.

    `message_ids` are the turn ids of the messages it answered; empty when it worked by itself. A
    message that was taken back before the agent took it up ends as cancelled, alone.
    """

    status: TurnStatus
    stop_reason: str | None = None
    error: TurnError | None = None
    usage: Usage | None = None
    total_cost_usd: float | None = None
    model: str | None = None
    message_ids: tuple[str, ...] = ()
    autonomous: bool = False


@dataclass(frozen=True, slots=True)
class AgentTookIn:
    """The agent took a message, by its turn id, into the turn under way."""

    message_id: str


Report = AgentIdentity | AgentTurnBegan | AgentTookIn | AgentTurnEnded
Translated = Event | Report
