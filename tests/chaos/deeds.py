"""What a story did and what became of it, written down as it happens; and which processes are there.

`story` writes it, `checks` reads it and asks it for causes.
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from agent_runtime_adapters.sandboxes.processes import ProcessMark
from tests.chaos.plan import Said
from tests.seen_from_outside import processes_of


@dataclass
class Deed:
    """Something that the story did to a session, which may be the cause of how a turn ended.

    `until` is when it was answered, None where it never was; `turn_id` names the turn that it was meant for.
    """

    what: str
    session: int
    at: datetime
    turn_id: str | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Wish:
    """An option that was set and acknowledged."""

    mood: int
    acknowledged: datetime


@dataclass
class Sent:
    """What became of a message at its sender: its turn, or the code it was refused with."""

    said: Said
    tries: int = 0
    turn_id: str | None = None
    refused: str | None = None
    when_busy: str = "queue"


@dataclass
class Figures:
    """What was done in the end, for the summary."""

    lives: int = 0
    blows: dict[str, int] = field(default_factory=dict)
    restarts_ms: list[float] = field(default_factory=list)
    cuts: int = 0
    refused: int = 0
    messages: int = 0
    joins: dict[str, int] = field(default_factory=dict)
    deeds: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    hibernated: int = 0
    moved: int = 0
    standstill_s: float = 0.0


def processes_below(folder: Path) -> list[ProcessMark]:
    """The living processes that have to do with a folder: by their environment, or by a mount."""
    found = map(ProcessMark.of, processes_of(folder))
    return [mark for mark in found if mark is not None and mark.running()]
