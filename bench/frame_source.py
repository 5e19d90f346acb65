"""Agents and their runners in one process that costs little: frames that are ready, into many sockets.

    python frame_source.py FOLDER COUNT       FOLDER/N/control.sock is what runner N listens on
    orders and answers as of `streaming_agents`

For loads that real runners on the same machine could not make: a real one wakes up, reads, keeps and sends
each token by itself, which is its own core's work and not the server's. What comes out of the socket is what
a runner sends when one token is read at a time. It answers every command with yes and keeps nothing.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any

from streaming_agents import BEFORE, BEHIND, DELTAS_OF_A_BLOCK, TAIL, Agent, asked, play, tell

_FRAME = b'{"o":%d,"t":%.3f,"k":"agent","line":%b}\n'
_DELTA = _FRAME.replace(b"%b", BEFORE.replace(b"%", b"%%") + b"%b" + BEHIND.rstrip().replace(b"%", b"%%"))
_ANSWERS: dict[str, dict[str, Any]] = {"list": {"files": []}, "message": {"duplicate": False}}


class Runner(Agent):
    """One runner with its agent; what the agent writes goes out as kept frames."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "control.sock"))
        self._listener.listen()
        self._connection: socket.socket | None = None
        self._name = folder.name
        self._offset = 0
        self.was_asked = False
        self._text: list[bytes] = []
        self.number = 0

    def accept(self) -> socket.socket:
        self._connection, _ = self._listener.accept()
        return self._connection

    def fileno(self) -> int:
        return self._listener.fileno()

    def obey(self) -> bool:
        """Answer what came; False at the end."""
        assert self._connection is not None
        data = self._connection.recv(1 << 18)
        for line in data.splitlines():
            frame = json.loads(line)
            if frame["k"] == "attach":
                hello = {"k": "hello", "v": 1, "head": self._offset, "oldest": 1, "agent": "none"}
                self._send(json.dumps(hello).encode() + b"\n")
            elif "id" in frame:
                self.was_asked |= frame["k"] == "message"
                result = _ANSWERS.get(frame["k"], {})
                answer = {"k": "reply", "id": frame["id"], "ok": True, "result": result}
                self._send(json.dumps(answer).encode() + b"\n")
        return bool(data)

    def say(self, many: int) -> None:
        """One delta in one step: fifty thousand a second must leave their core time for the viewers."""
        if many != 1 or (self.number + 1) % DELTAS_OF_A_BLOCK == 0:
            super().say(many)
            return
        self._offset += 1
        stamp = b"@%016d:%07d" % (time.monotonic_ns() // 1000, self.number)
        self.number += 1
        self._text.append(stamp + TAIL)
        self._send(_DELTA % (self._offset, time.time(), stamp))

    def write(self, data: bytes) -> None:
        now = time.time()
        for line in data.splitlines():
            self._offset += 1
            self._send(_FRAME % (self._offset, now, line))

    def _send(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.sendall(data)

    def finish(self) -> None:
        pass


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    runners = [Runner(Path(sys.argv[1]) / str(number)) for number in range(int(sys.argv[2]))]
    waiting = selectors.DefaultSelector()
    for runner in runners:
        waiting.register(runner, selectors.EVENT_READ, ("accept", runner))
    waiting.register(sys.stdin, selectors.EVENT_READ, ("order", None))
    tell(ready=True)
    order = b""
    while True:
        for key, _ in waiting.select():
            what, runner = key.data
            if what == "accept":
                waiting.register(runner.accept(), selectors.EVENT_READ, ("command", runner))
            elif what == "command" and not runner.obey():
                waiting.unregister(key.fileobj)
            elif what == "order" and not (order := asked()):
                return
        # A sandbox is connected to when its session is woken, which may be after the order.
        if order and all(runner.was_asked for runner in runners):
            play(runners, **json.loads(order))
            order = b""
            for runner in runners:
                runner.was_asked = False


if __name__ == "__main__":
    main()
