"""Moves: what may happen to a session, and what its shell is then asked to do.

The vocabulary of `lifecycle`: inputs go in, effects come out. Ids arrive inside inputs; times and
durations are the shell's business. Which input leads to which effects is the table next door.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent_runtime.records import TurnError
from agent_runtime.reports import AgentTurnEnded

Manner: TypeAlias = Literal["queue", "steer", "interrupt"]
"""What a message does that arrives in mid-turn: wait, join that turn, or end it and come next."""

# What may happen to a session.


@dataclass(frozen=True, slots=True)
class MessageAccepted:
    """A user's message is durable; it is this turn."""

    turn_id: str
    manner: Manner = "queue"


@dataclass(frozen=True, slots=True)
class Steered:
    """The agent took the message of a waiting turn while another was under way."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class NotSteered:
    """The agent was not handed the message of a waiting turn after all."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class Attached:
    """A sandbox of an earlier process was found alive, with all that it said since dealt with.

    `turn_id` is the turn that was under way, `autonomous` whether the agent had begun it by itself;
    `queue` are those that waited. `agent`: its agent's process is there.
    """

    turn_id: str | None
    queue: tuple[str, ...]
    autonomous: bool
    agent: bool


@dataclass(frozen=True, slots=True)
class PrewarmWanted:
    """Somebody wants the sandbox before the first message."""


@dataclass(frozen=True, slots=True)
class Woken:
    """The sandbox is there and the agent waits for messages. `attempt` is that of its `Wake`."""

    attempt: int


@dataclass(frozen=True, slots=True)
class WakeFailed:
    """There is no sandbox and will be none; nothing of the attempt is left."""

    attempt: int
    error: TurnError


@dataclass(frozen=True, slots=True)
class AgentBegan:
    """The agent works. `turn_id` is a fresh id, used when no turn is under way."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class AgentRested:
    """The agent finished what it did."""

    report: AgentTurnEnded


@dataclass(frozen=True, slots=True)
class InterruptWanted:
    """Somebody wants a turn to end: the active one (None), or a named one, active or queued."""

    turn_id: str | None = None


@dataclass(frozen=True, slots=True)
class InterruptExpired:
    """The agent did not end the turn within its grace."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class StopWanted:
    """The sandbox is to end; the session stays. `error`: why a running turn fails; None: cancelled."""

    error: TurnError | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The sandbox is gone."""


@dataclass(frozen=True, slots=True)
class SandboxLost:
    """The sandbox, or the agent in it, died by itself.

    `untouched`: nothing was said or done in it since the message of the turn under way was handed over.
    """

    error: TurnError
    untouched: bool = False


@dataclass(frozen=True, slots=True)
class AgentIdle:
    """The agent has had nothing to do for long."""


@dataclass(frozen=True, slots=True)
class SandboxIdle:
    """The sandbox has had nothing to do for long."""


@dataclass(frozen=True, slots=True)
class SandboxAging:
    """The sandbox has lived for most of its lifetime; its provider will end it soon."""


Input: TypeAlias = (
    MessageAccepted
    | Steered
    | NotSteered
    | Attached
    | PrewarmWanted
    | Woken
    | WakeFailed
    | AgentBegan
    | AgentRested
    | InterruptWanted
    | InterruptExpired
    | StopWanted
    | Stopped
    | SandboxLost
    | AgentIdle
    | SandboxIdle
    | SandboxAging
)

# What the shell is asked to do, in order.


@dataclass(frozen=True, slots=True)
class Wake:
    """Start the agent, in a new sandbox where there is none; answered by `Woken` or `WakeFailed`."""

    attempt: int


@dataclass(frozen=True, slots=True)
class CancelWake:
    """Give the attempt up and leave nothing of it; never answered."""


@dataclass(frozen=True, slots=True)
class BeginTurn:
    """Announce the turn and its user message, if it has one."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand the turn's message to the agent."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class Steer:
    """Hand a waiting turn's message to the agent in mid-turn; `Steered` when it takes it in.

    Where the turn under way ends first, the message is the next turn, and is not handed over twice.
    """

    turn_id: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Ask the agent to stop; `InterruptExpired` comes back after the grace.

    `turn_id` None: no turn is under way, and only what works in the background is to end.
    """

    turn_id: str | None


@dataclass(frozen=True, slots=True)
class EndTurn:
    """Close what is open, persist everything, announce the end."""

    turn_id: str
    report: AgentTurnEnded


@dataclass(frozen=True, slots=True)
class EndUnbegun:
    """Announce a turn that never ran: its message, its begin and its end, all at once.

    It may come while another turn is under way, and touches nothing of that one.
    """

    turn_id: str
    report: AgentTurnEnded


@dataclass(frozen=True, slots=True)
class StopSandbox:
    """Sync where that is still possible, end the sandbox; answered by `Stopped`.

    `keep`: its files are to be there again in the next one, also those that no store holds, where the
    provider offers that.
    """

    keep: bool = False


@dataclass(frozen=True, slots=True)
class EndAgent:
    """End the agent politely; its sandbox stays."""


@dataclass(frozen=True, slots=True)
class AnnounceQueue:
    """Tell who waits."""


@dataclass(frozen=True, slots=True)
class AnnounceStatus:
    """Tell how the session stands."""


Effect: TypeAlias = (
    Wake
    | CancelWake
    | BeginTurn
    | Deliver
    | Steer
    | Interrupt
    | EndTurn
    | EndUnbegun
    | StopSandbox
    | EndAgent
    | AnnounceQueue
    | AnnounceStatus
)
