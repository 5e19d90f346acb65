"""Start a program that outlives the runtime and is never lost track of, not even for an instant.

The program is started by `launch.py`, in a session of its own, and belongs to init. Its pid is
known and noted before it runs; until the runtime says "go", it ends by itself when the runtime
does. What is started, and as what, is the business of `local` and `unsafe_subprocess`; who ends it
is `keeper`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import SandboxSpec
from agent_runtime_adapters.sandboxes import launch as launch_program
from agent_runtime_adapters.sandboxes.bounds import LIMITS
from agent_runtime_adapters.sandboxes.descriptors import hold, read_line, read_to_end
from agent_runtime_adapters.sandboxes.launchers import Launchers, end
from agent_runtime_adapters.sandboxes.processes import ProcessMark
from agent_runtime_sandbox import frames

LISTEN_PLACE: Final = 3
"""The descriptor on which the runner listens."""
JOURNAL_PLACE: Final = 4
"""The descriptor of the runner's journal, open for reading and writing."""
READY_PLACE: Final = 5
"""The descriptor to which the started program says that it is up."""
INFO_PLACE: Final = 6
"""The descriptor to which bubblewrap tells the pid of the sandbox's first process."""
VARIABLES_PLACE: Final = 7
"""The descriptor from which the runner reads the variables of the agent and its tools, if there are any."""
LOG_PLACE: Final = 8
"""The descriptor for what the runner complains about. A shell knows places of one digit only."""
FIRST_FREE_PLACE: Final = 9

SAY_READY_THEN_RUN: Final = (
    f'echo ready >&{READY_PLACE}; exec "$@" {READY_PLACE}>&- 2>&{LOG_PLACE} {LOG_PLACE}>&-'
)
"""A shell script: from here on everything is set up; the shell becomes the runner."""
RUN_THEN_SAY_READY: Final = f'"$@" && echo ready >&{READY_PLACE}'
"""A shell script: ready only if the command ended well."""

RUNNER: Final = ("-m", "agent_runtime_sandbox")
"""What an interpreter is told, to be the runner."""

STAGE: Final = "/tmp"  # noqa: S108 - covered by a tmpfs in a mount namespace of its own
"""Where a root runtime's launcher gathers the sources of mounts; source n is at `STAGE/n`."""

START_WITHIN_S: Final = 20.0
_NO_MORE: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
INFO_WITHIN_S: Final = 2.0
"""bubblewrap takes milliseconds to tell; one that hangs has no first process yet."""
COMPLAINT_BYTES: Final = 2048

_SENTENCES: Final = {
    launch_program.NO_MOUNT_NAMESPACE: "The runtime is root but may not make a mount namespace: give it "
    "CAP_SYS_ADMIN, or run it as an ordinary user.",
    launch_program.NO_STAGE: "The files that a sandbox needs could not be gathered for it.",
    launch_program.NO_IDENTITY: "The runtime is root but may not take another uid: give it CAP_SETUID and "
    "CAP_SETGID, or run it as an ordinary user.",
    launch_program.NO_CGROUP: "The sandbox could not join its control groups.",
    launch_program.NO_DISK: "The sandbox's own file system could not be mounted.",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, and as what.

    `places` maps a descriptor's number in the program to one of this process. `stage_sources` are
    paths to gather before root is given up; those that are no absolute paths are folders of the file
    system in `disk`. `cgroups` are groups to join. `uid` None: stay who we are. `tells_inner`: the
    program is bubblewrap, which tells its first process at `INFO_PLACE`.
    """

    argv: tuple[str, ...]
    cwd: str
    places: Mapping[int, int]
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=lambda: LIMITS)
    stage_sources: tuple[str, ...] = ()
    disk: Path | None = None
    cgroups: tuple[str, ...] = ()
    uid: int | None = None
    tells_inner: bool = False


NO_SITE: Final = "-S"
"""For an interpreter whose PYTHONPATH names all its packages: what lies in its own site-packages is not
looked at, nor are programs in `.pth` files run, which any installed package may have brought (some 10 ms,
and 40 more where one of them imports something)."""


def interpreter(
    python: tuple[str, ...], runner: tuple[str, ...], spec: SandboxSpec, *more: str
) -> tuple[str, ...]:
    """The command line of a runner; `python` with options, `more` are options of its provider's own.

    `-P -s`: neither the workspace nor the agent's home may slip a module into it.
    """
    variables = ("--env-fd", str(VARIABLES_PLACE)) if _variables(spec) else ()
    return (
        *(*python, "-P", "-s", *runner),
        *("--listen-fd", str(LISTEN_PLACE), "--journal-fd", str(JOURNAL_PLACE), *variables),
        *("--orphan-timeout", f"{spec.orphan_timeout_s:g}"),
        *(("--lifetime", f"{spec.needs.lifetime_s:g}") if spec.needs.lifetime_s is not None else ()),
        *(f"--ignore={name}" for name in spec.file_rules.ignore),
        *("--max-file-bytes", str(spec.file_rules.max_file_bytes)),
        *("--max-files", str(spec.file_rules.max_files)),
        *more,
    )


def relay_options(spec: SandboxSpec) -> tuple[str, ...]:
    """For a sandbox with a network of its own: a relay, and tools that use it where hosts are allowed."""
    return ("--relay", str(frames.RELAY_PORT), *(("--proxy",) if spec.needs.egress.hosts else ()))


def variables_place(spec: SandboxSpec, stack: ExitStack) -> dict[int, int]:
    """The descriptor that `interpreter` tells the runner of, where the agent is to have variables.

    They are in no environment and on no command line but the agent's: not in the runner's, which begins
    in /proc, nor in that of bubblewrap.
    """
    told = _variables(spec)
    return {VARIABLES_PLACE: hold(json.dumps(told).encode(), stack)} if told else {}


def _variables(spec: SandboxSpec) -> dict[str, str]:
    return {**spec.needs.env, **spec.secrets}


class StartFailed(SandboxFault):
    """The program did not come up.

    For the probe to read, not to show: `complaint` is its own text, `missing` is what the launcher could
    not have (its exit code).
    """

    complaint: str = ""
    missing: int = 0


Note = Callable[[ProcessMark, ProcessMark | None], None]
"""Told the started process before it runs, and again together with the sandbox's first process."""


async def launch(plan: Plan, log: Path, note: Note, launchers: Launchers) -> None:
    """Start the plan's program; return when it has said that it is up. Raises `StartFailed`, `OSError`.

    Whatever this raises, the caller ends the processes that were noted.
    """
    with ExitStack() as stack:
        complaints = _complaints(stack)
        pipes = _Pipes(*(_pipe(stack) for _ in range(4)))
        try:
            async with asyncio.timeout(START_WITHIN_S):
                starter = await _spawn(plan, pipes, log, complaints, launchers)
                try:
                    for pipe in (pipes.report, pipes.ready, pipes.info):
                        pipe.inlet.close()
                    await _follow(starter, pipes, note, tells_inner=plan.tells_inner)
                except BaseException:
                    await end(starter)
                    raise
        except TimeoutError as error:
            raise StartFailed("The sandbox took too long to start.") from error
        except StartFailed as failure:
            failure.complaint = os.pread(complaints, COMPLAINT_BYTES, 0).decode(errors="replace")
            raise
        fcntl.fcntl(complaints, fcntl.F_ADD_SEALS, _NO_MORE)


async def _follow(starter: Process, pipes: _Pipes, note: Note, *, tells_inner: bool) -> None:
    """The conversation with the launcher, and then with the program itself."""
    reported = await read_line(pipes.report.outlet.fileno())
    code = await starter.wait()
    keeper = ProcessMark.of(int(reported)) if reported.endswith(b"\n") else None
    if keeper is None:
        failure = StartFailed(_SENTENCES.get(code, "The sandbox could not be started."))
        failure.missing = code
        raise failure
    note(keeper, None if tells_inner else keeper)
    pipes.go.inlet.write(b"g")
    if tells_inner:
        await _note_inner(pipes.info.outlet.fileno(), keeper, note)
    if await read_line(pipes.ready.outlet.fileno()) != b"ready\n":
        raise StartFailed("The sandbox could not be set up.")


async def _note_inner(info: int, keeper: ProcessMark, note: Note) -> None:
    """Note the sandbox's first process, even when cancelled: else it could not be ended."""
    try:
        told = await read_to_end(info)
    except asyncio.CancelledError:
        with suppress(TimeoutError):
            async with asyncio.timeout(INFO_WITHIN_S):
                _note_told(await read_to_end(info), keeper, note)
        raise
    _note_told(told, keeper, note)


def _note_told(told: bytes, keeper: ProcessMark, note: Note) -> None:
    inner = ProcessMark.of(int(json.loads(told)["child-pid"])) if told else None
    if inner is not None:
        note(keeper, inner)


def _complaints(stack: ExitStack) -> int:
    """Where the launcher and bubblewrap complain, until the program is up.

    The sandbox's first process keeps it, and is open to whoever is inside: so it is no file of the host,
    and takes nothing any more once it is sealed.
    """
    memory = os.memfd_create("complaints", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    return stack.enter_context(FileIO(memory, "r+")).fileno()


async def _spawn(plan: Plan, pipes: _Pipes, log: Path, complaints: int, launchers: Launchers) -> Process:
    places = {**plan.places, READY_PLACE: pipes.ready.inlet.fileno()}
    with ExitStack() as stack:
        if plan.tells_inner:
            places[INFO_PLACE] = _both_ways(pipes.info, stack)
        places[LOG_PLACE] = stack.enter_context(log.open("ab", buffering=0)).fileno()
        own = (complaints, pipes.report.inlet.fileno(), pipes.go.outlet.fileno())
        told = hold(_as_json(plan, tuple(places)), stack)
        return await launchers.hand_over((told, *own, *places.values()))


def _as_json(plan: Plan, places: tuple[int, ...]) -> bytes:
    """The plan as `launch.py` reads it. `places` are those of the descriptors that come behind its own."""
    told = {
        "argv": plan.argv,
        "env": dict(plan.env),
        "cwd": plan.cwd,
        "uid": plan.uid,
        "limits": dict(plan.limits),
        "places": places,
        "stage": _stage(plan) if plan.stage_sources else None,
        "cgroups": plan.cgroups,
    }
    return json.dumps(told).encode()


def _stage(plan: Plan) -> dict[str, object]:
    folders = [source for source in plan.stage_sources if not source.startswith("/")]
    disk = {"image": str(plan.disk), "folders": folders, "uid": plan.uid} if plan.disk is not None else None
    return {"folder": STAGE, "sources": plan.stage_sources, "disk": disk}


class _Pipe(NamedTuple):
    outlet: FileIO
    inlet: FileIO


class _Pipes(NamedTuple):
    """launcher's child's pid; the word to go on; the program is up; bubblewrap's first process."""

    report: _Pipe
    go: _Pipe
    ready: _Pipe
    info: _Pipe


def _pipe(stack: ExitStack) -> _Pipe:
    outlet, inlet = os.pipe()
    return _Pipe(stack.enter_context(FileIO(outlet, "r")), stack.enter_context(FileIO(inlet, "w")))


def _both_ways(pipe: _Pipe, stack: ExitStack) -> int:
    """An inlet that is an outlet too, so that it does not break when the runtime dies.

    Bubblewrap gives up when it cannot tell of its first process, which then waits for it for ever.
    """
    opened = os.open(f"/proc/self/fd/{pipe.inlet.fileno()}", os.O_RDWR | os.O_CLOEXEC)
    return stack.enter_context(FileIO(opened, "w")).fileno()
