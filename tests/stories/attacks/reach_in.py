"""Run by a tool of the agent: tries every way into the runner and the agent, and tells which ones led in."""

import ctypes
import json
import os
import platform
import socket
from collections.abc import Callable
from typing import Any

CALLS = {
    "x86_64": {"ptrace": 101, "readv": 310, "writev": 311, "getfd": 438, "prlimit": 302, "madvise": 440},
    "aarch64": {"ptrace": 117, "readv": 270, "writev": 271, "getfd": 438, "prlimit": 261, "madvise": 440},
}[platform.machine()]
ATTACH, SEIZE, COLD = 16, 0x4206, 20
READABLE = ("environ", "maps", "smaps", "auxv", "io", "stack", "syscall", "pagemap", "personality", "mem")
WRITABLE = ("mem", "oom_score_adj", "coredump_filter", "timerslack_ns", "clear_refs", "comm", "autogroup")
PROGRAM = "/opt/agent-runtime/agents/claude"

libc = ctypes.CDLL(None, use_errno=True)
led_in: list[str] = []
tried = 0


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def attempt(name: str, deed: Callable[[], Any]) -> None:
    """A deed that raises `OSError` is refused; one that returns false got nothing."""
    global tried  # noqa: PLW0603
    tried += 1
    try:
        got = deed()
    except OSError:
        return
    if got:
        led_in.append(f"{name}: {got!r}"[:200])


def call(name: str, *arguments: Any) -> None:
    attempt(name, lambda: libc.syscall(*arguments) >= 0)


def write(path: str) -> bool:
    with open(path, "w") as file:
        file.write("1")
    return True


def opened(path: str, flags: int) -> bool:
    os.close(os.open(path, flags))
    return True


def links(folder: str) -> list[str]:
    return [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]


def find() -> dict[str, int]:
    """The agent says who it is; the runner is its parent."""
    agent = int(os.environ["CLAUDE_PID"])
    with open(f"/proc/{agent}/stat") as file:
        runner = int(file.read().rpartition(")")[2].split()[1])
    return {"runner": runner, "agent": agent}


def through_proc(who: str, pid: int) -> None:
    threads = [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]
    for place in (f"/proc/{pid}", *threads):
        for name in ("fd", "fdinfo", "map_files", "ns"):
            attempt(f"{who} {name}", lambda: links(f"{place}/{name}"))
        for number in range(32):
            for flags in (os.O_RDONLY, os.O_WRONLY | os.O_NONBLOCK):
                attempt(f"{who} fd {number}", lambda: opened(f"{place}/fd/{number}", flags))
        for name in READABLE:
            attempt(f"{who} reads {name}", lambda: opened(f"{place}/{name}", os.O_RDONLY))
        for name in WRITABLE:
            attempt(f"{who} writes {name}", lambda: write(f"{place}/{name}"))
        for name in ("exe", "cwd", "root"):
            attempt(f"{who} {name}", lambda: os.readlink(f"{place}/{name}"))


def through_calls(who: str, pid: int) -> None:
    mine = ctypes.create_string_buffer(8)
    here, there = (ctypes.byref(Vector(at, 8)) for at in (ctypes.addressof(mine), 0x400000))
    nothing = ctypes.byref((ctypes.c_ulong * 2)(0, 0))
    call(f"{who} attach", CALLS["ptrace"], ATTACH, pid, 0, 0)
    call(f"{who} seize", CALLS["ptrace"], SEIZE, pid, 0, 0)
    for name in ("readv", "writev"):
        call(f"{who} {name}", CALLS[name], pid, here, 1, there, 1, 0)
    handle = os.pidfd_open(pid)
    for number in range(16):
        call(f"{who} descriptor {number}", CALLS["getfd"], handle, number, 0)
    call(f"{who} madvise", CALLS["madvise"], handle, there, 1, COLD, 0)
    for bound in range(16):
        call(f"{who} bound {bound}", CALLS["prlimit"], pid, bound, nothing, 0)


def through_sockets() -> None:
    """No name leads to the runner, and no descriptor that was inherited."""
    with open("/proc/net/unix") as table:
        rows = [line.split() for line in table.read().splitlines()[1:]]
    names = {row[7] for row in rows if len(row) > 7} | {"@control.sock", "/run/agent-runtime/control.sock"}
    for name in names:
        attempt(f"socket {name}", lambda: greets("\0" + name[1:] if name.startswith("@") else name))
    for number in range(3, 64):
        attempt(f"inherited {number}", lambda: os.readlink(f"/proc/self/fd/{number}"))


def greets(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(1)
        caller.connect(address)
        caller.sendall(b'{"k":"attach","after":0}\n')
        return b'"hello"' in caller.recv(4096)


def through_files() -> None:
    attempt("program read", lambda: opened(PROGRAM, os.O_RDONLY))
    attempt("program mode", lambda: os.chmod(PROGRAM, 0o755) is None)
    attempt("program replaced", lambda: os.rename("/workspace/own", PROGRAM) is None)
    attempt("program removed", lambda: os.unlink(PROGRAM) is None)
    attempt("program linked", lambda: os.link(PROGRAM, "/workspace/program") is None)
    for folder, _, files in os.walk("/opt/agent-runtime/lib"):
        for name in files:
            attempt(f"code {name}", lambda: opened(os.path.join(folder, name), os.O_RDWR))


open("/workspace/own", "w").close()

through_sockets()  # first: descriptors of our own come later
for who, pid in find().items():
    through_proc(who, pid)
    through_calls(who, pid)
through_files()
print("LED IN", json.dumps([led_in, tried, os.path.exists(PROGRAM)]), "END")
