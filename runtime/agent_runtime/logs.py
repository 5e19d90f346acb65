"""logs: how a failure looks in a log where the host has not decided it.

structlog, left to itself, shows the variables of every frame of a failure: tokens among them, and a
second or two of the server's time for each. A host's own configuration stays as it is. What the command
line logs, and where, is in `cli`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger


def processors(stream: TextIO) -> Sequence[Processor]:
    """A line for people: what, when, how bad, and plain tracebacks; nothing that moves a terminal."""
    return (
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _harmless,
        structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=_plain_traceback),
    )


def printable(text: str) -> str:
    """The text with what a terminal obeys, and what hides or turns text around, escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _harmless(_: WrappedLogger, __: str, facts: EventDict) -> EventDict:
    """An agent's complaint, a client's reason: short texts would be shown as they are."""
    return {name: printable(fact) if isinstance(fact, str) else fact for name, fact in facts.items()}


def _plain_traceback(stream: TextIO, failure: ExcInfo) -> None:
    """An error's message may be a stranger's, too."""
    shown = io.StringIO()
    structlog.dev.plain_traceback(shown, failure)
    stream.write("\n".join(printable(line) for line in shown.getvalue().split("\n")))


def be_plain() -> None:
    """Configure structlog, unless somebody has."""
    if not structlog.is_configured():
        structlog.configure(processors=processors(sys.stdout))
