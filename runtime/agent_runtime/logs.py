"""logs: how a failure looks in a log where the host has not decided it.

structlog, left to itself, shows the variables of every frame of a failure: tokens among them, and a
second or two of the server's time for each. A host's own configuration stays as it is. What the command
line logs, and where, is in `cli`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

import structlog
from structlog.typing import Processor


def processors(stream: TextIO) -> Sequence[Processor]:
    """A line for people: what, when, how bad, and plain tracebacks."""
    return (
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        ),
    )


def be_plain() -> None:
    """Configure structlog, unless somebody has."""
    if not structlog.is_configured():
        structlog.configure(processors=processors(sys.stdout))
