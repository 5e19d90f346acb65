"""What the tasks of a process wait for, told at a signal: a line for each, from the outside in."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

TELL = signal.SIGUSR1
END = "that is what all tasks await"


def tell_at_a_signal() -> None:
    """From now on, of the loop that runs; it is written to where the log goes."""
    asyncio.get_running_loop().add_signal_handler(TELL, _tell)


def _tell() -> None:
    told = sorted(f"{task.get_name()} awaits {' > '.join(_chain(task))}" for task in asyncio.all_tasks())
    sys.stderr.write("\n".join((*told, END, "")))
    sys.stderr.flush()


def _chain(task: asyncio.Task[Any]) -> Iterator[str]:
    inner: Any = task.get_coro()
    while inner is not None:
        frame, inner = _step(inner)
        if frame is not None:
            code = frame.f_code
            yield f"{code.co_qualname} ({code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno})"


def _step(inner: Any) -> tuple[FrameType | None, Any]:
    """The frame of a coroutine or generator, and what that waits for in turn."""
    for kind, following in (("cr", "await"), ("gi", "yieldfrom"), ("ag", "await")):
        if hasattr(inner, f"{kind}_frame"):
            return getattr(inner, f"{kind}_frame"), getattr(inner, f"{kind}_{following}")
    return None, None
