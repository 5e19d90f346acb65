"""A parent that has imported everything and forks a runtime per life: a restart costs milliseconds.

    python -m tests.chaos.fork_server      reads orders as JSON lines, answers with JSON lines

    {"spawn": NAME, "told": {...}, "log": PATH}   -> {name, pid}, {name, ready: PORT}, {name, exit: N}
    {"signal": NAME, "number": N}                 only ever reaches a child that has not been reaped

It has one thread and no event loop, so forking is safe. When its input ends it kills what it forked and ends.
"""

import gc
import json
import os
import selectors
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.chaos.life import live


class ForkServer:
    def __init__(self) -> None:
        self._children: dict[str, int] = {}
        self._voices: dict[int, str] = {}
        self._selector = selectors.DefaultSelector()
        self._input = b""

    def run(self) -> None:
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(0, selectors.EVENT_READ)
        self._selector.register(wake_read, selectors.EVENT_READ)
        gc.freeze()
        self._private = [wake_read, wake_write]
        while True:
            for key, _ in self._selector.select():
                if key.fd == wake_read:
                    os.read(wake_read, 4096)
                elif key.fd in self._voices:
                    self._hear(key.fd)
                elif not self._obey():
                    self._end()
                    return
            self._reap()

    def _obey(self) -> bool:
        data = os.read(0, 65536)
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "spawn" in order:
                self._spawn(order["spawn"], order["told"], Path(order["log"]))
            elif order["signal"] in self._children:
                os.kill(self._children[order["signal"]], order["number"])
        return bool(data)

    def _spawn(self, name: str, told: dict[str, Any], log: Path) -> None:
        hears, says = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(hears)
            self._be_born(told, log, says)
        os.close(says)
        self._children[name] = pid
        self._voices[hears] = name
        self._selector.register(hears, selectors.EVENT_READ)
        _tell({"name": name, "pid": pid})

    def _be_born(self, told: dict[str, Any], log: Path, says: int) -> None:
        """In the child; never returns."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for descriptor in (*self._private, *self._voices):
                os.close(descriptor)
            written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for standard in (1, 2):
                os.dup2(written, standard)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            live(told, says)
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def _hear(self, descriptor: int) -> None:
        data = os.read(descriptor, 65536)
        for line in data.splitlines():
            _tell({"name": self._voices[descriptor], **json.loads(line)})
        if not data:
            self._selector.unregister(descriptor)
            del self._voices[descriptor]
            os.close(descriptor)

    def _reap(self) -> None:
        for name, pid in list(self._children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._children[name]
                _tell({"name": name, "exit": os.waitstatus_to_exitcode(status)})

    def _end(self) -> None:
        for pid in self._children.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _tell(said: dict[str, Any]) -> None:
    os.write(1, json.dumps(said).encode() + b"\n")


if __name__ == "__main__":
    ForkServer().run()
