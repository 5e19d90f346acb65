"""Agents that only talk: one process that writes native lines of Claude's kind into many named pipes.

    python streaming_agents.py PIPE ...       then, on its input, one line at a time:
    {"lines_per_second": 5000, "seconds": 3}  all pipes together; 0: as fast as they are read
    -> {"begun": N}                           each agent has begun a turn and a message
    go
    -> {"written": [deltas of each pipe], "seconds": what it took, "began": when}
    end                                       the turns end

So what deltas cost can be told from what a turn costs. A delta's text tells when it was written and its
number: `@<us of the monotonic clock>:<number> wwww`. Lines are as long as the real
agent's. Peers read the same pipes as ours, so that what writes them weighs the same in all of them.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Sequence
from typing import Any

LINE_BYTES = 310
DELTAS_OF_A_BLOCK = 1000
"""A message is no longer than what a model says at once; then it is whole, and the next begins."""
BURST = 12
"""Lines in one write where it is as fast as can be: what fits into a pipe whole or not at all."""
ORDER_BYTES = 4096
_SESSION = "84b51bc7-55a1-4d9f-b3f0-3f7b85eae439"


def _line(**said: Any) -> bytes:
    return json.dumps({**said, "session_id": _SESSION}, separators=(",", ":")).encode() + b"\n"


def _streamed(**event: Any) -> bytes:
    return _line(type="stream_event", event=event, parent_tool_use_id=None, uuid=_SESSION)


def _delta_parts() -> tuple[bytes, bytes]:
    """What comes before and behind a delta's stamp and number, which take 25 bytes."""
    bare = _streamed(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "STAMP"})
    before, _, behind = bare.partition(b"STAMP")
    return before, b" " + b"w" * (LINE_BYTES - len(before) - len(behind) - 26) + behind


BEFORE, BEHIND = _delta_parts()


class Agent:
    """One agent's end of its pipe. What does not fit now is kept for later, so that no line is torn."""

    def __init__(self, path: str) -> None:
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # whoever reads may come later and go again
        self._name = path.rpartition("/")[2]
        self._left = b""
        self._text: list[bytes] = []
        self.number = 0

    def fileno(self) -> int:
        return self._pipe

    def begin(self) -> None:
        self.number = 0
        self.write(_line(type="system", subtype="init", model="claude-x"))
        self._begin_message()

    def _begin_message(self) -> None:
        message = {"id": f"msg_{time.monotonic_ns()}_{self._name}", "model": "claude-x", "role": "assistant"}
        self._id = message["id"]
        self.write(
            _streamed(type="message_start", message=message)
            + _streamed(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
        )

    def _end_message(self) -> None:
        content = [{"type": "text", "text": b"".join(self._text).decode()}]
        message = {"id": self._id, "model": "claude-x", "role": "assistant", "content": content}
        self._text.clear()
        self.write(
            _line(type="assistant", message=message, parent_tool_use_id=None, uuid=self._id)
            + _streamed(type="content_block_stop", index=0)
            + _streamed(type="message_stop")
        )

    def say(self, many: int) -> None:
        """So many deltas with the time of now."""
        stamp = b"@%016d:%07d"
        now, first = time.monotonic_ns() // 1000, self.number
        said = [stamp % (now, number) for number in range(first, first + many)]
        self.number += many
        self._text += [each + TAIL for each in said]
        self.write(b"".join([BEFORE + each + BEHIND for each in said]))
        if self.number // DELTAS_OF_A_BLOCK != first // DELTAS_OF_A_BLOCK:
            self._end_message()
            self._begin_message()

    def end(self) -> None:
        self._end_message()
        self.write(_line(type="result", subtype="success", is_error=False, num_turns=1, result="ok"))

    def write(self, data: bytes) -> None:
        self._left += data
        self.go_on()

    def go_on(self) -> bool:
        """Whether all of it is in the pipe."""
        try:
            while self._left:
                self._left = self._left[os.write(self._pipe, self._left[:4096]) :]
        except BlockingIOError:
            return False
        return True

    def finish(self) -> None:
        while not self.go_on():
            select.select([], [self], [], 1.0)


TAIL = BEHIND.partition(b'"')[0]


def paced(agents: Sequence[Agent], lines_per_second: float, seconds: float) -> None:
    """One line at a time, each agent in its turn, at even distances."""
    began, pause = time.monotonic(), 1 / lines_per_second
    for number in range(int(lines_per_second * seconds)):
        wait = began + number * pause - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        agents[number % len(agents)].say(1)


def as_fast_as_can_be(agents: Sequence[Agent], seconds: float) -> None:
    """Whoever has room in the pipe writes a burst."""
    until = time.monotonic() + seconds
    waiting = select.epoll()
    for agent in agents:
        waiting.register(agent.fileno(), select.EPOLLOUT)
    by_number = {agent.fileno(): agent for agent in agents}
    while time.monotonic() < until:
        for number, _ in waiting.poll(0.05):
            if by_number[number].go_on():
                by_number[number].say(BURST)
    waiting.close()


def play(agents: Sequence[Agent], lines_per_second: float, seconds: float) -> None:
    """One turn of each agent, in three steps; the next one begins when it is asked for."""
    for agent in agents:
        agent.begin()
    tell(begun=len(agents))
    asked()
    began = time.monotonic()
    if lines_per_second:
        paced(agents, lines_per_second, seconds)
    else:
        as_fast_as_can_be(agents, seconds)
    tell(written=[agent.number for agent in agents], seconds=time.monotonic() - began, began=began)
    asked()
    for agent in agents:
        agent.end()
    for agent in agents:
        agent.finish()


def tell(**said: Any) -> None:
    print(json.dumps(said), flush=True)


def asked() -> bytes:
    """The next line of whoever gives the orders, who sends one at a time; empty at the end."""
    return os.read(0, ORDER_BYTES)


def main() -> None:
    agents = [Agent(path) for path in sys.argv[1:]]
    tell(ready=True)
    while order := asked():
        play(agents, **json.loads(order))


if __name__ == "__main__":
    main()
