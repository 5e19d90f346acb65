"""A process in a sandbox, seen from the data path: outputs by offset, an input by offset, an exit.

It starts what it is given; that this happens inside of a sandbox is the business of `enclosure`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from grpclib import GRPCError, Status

from agent_runtime_modal_local.background import Background
from agent_runtime_modal_local.streams import CHUNK_BYTES, Output
from agent_runtime_modal_local.terminal import Terminal, TerminalSize


@dataclass(frozen=True, slots=True)
class Command:
    """What to start.

    Attributes:
        argv: with the program first, as seen from the server.
        env: all of its environment.
        terminal: the size of a terminal, where it is to have one.
        keep_out, keep_err: whether what it prints is kept or thrown away.
        err_to_out: errors go where the output goes.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    terminal: TerminalSize | None = None
    keep_out: bool = True
    keep_err: bool = True
    err_to_out: bool = False


class Process:
    """A started process. Make it with `start`."""

    def __init__(self, folder: Path) -> None:
        self.out = Output(folder)
        self.err = Output(folder)
        self.exited = asyncio.Event()
        self.exit: int | None = None
        self.timed_out = False
        """Whether it was ended because its time was up: then it never says how it exited."""
        self.taken = 0
        """How many bytes of input it has been given."""
        self.input_closed = False
        self._input = asyncio.Lock()
        self._terminal: Terminal | None = None
        self._child: asyncio.subprocess.Process

    @classmethod
    async def start(cls, command: Command, folder: Path, background: Background) -> Process:
        """Start it; its outputs are kept below `folder`, its pumps live in `background`. Raises `OSError`."""
        process = cls(folder)
        if command.terminal is not None:
            process._terminal = Terminal(command.terminal)
            await process._start_at(process._terminal, command)
            process.err.close()
            background.spawn(process._terminal.pump(process.out))
        else:
            await process._start_piped(command, background)
        background.spawn(process._reap())
        return process

    def kill(self) -> None:
        """End all that was started, at once.

        What we started ourselves is left to die with what it waits for: were it killed first, the process
        inside would be a zombie that nobody but the machine's init can bury, and its sandbox could not end.
        """
        for pid in _descendants(self._child.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def forget(self) -> None:
        """Let go of what it printed."""
        self.out.forget()
        self.err.forget()

    async def write(self, offset: int, data: bytes, *, eof: bool) -> None:
        """Give it input from an offset on; bytes that it was given before are dropped.

        Raises `GRPCError` (FAILED_PRECONDITION) where there is a hole, or nobody to read.
        """
        async with self._input:
            if offset > self.taken:
                detail = f"input at {offset} is ahead of the {self.taken} bytes that came"
                raise GRPCError(Status.FAILED_PRECONDITION, detail)
            fresh = data[self.taken - offset :]
            if fresh and (self.exit is not None or self.input_closed):
                raise GRPCError(Status.FAILED_PRECONDITION, "the process reads no input any more")
            try:
                await self._give(fresh)
            except OSError as error:
                raise GRPCError(Status.FAILED_PRECONDITION, "the input is closed") from error
            self.taken += len(fresh)
            if eof and not self.input_closed:
                self.input_closed = True
                await self._end_input()

    async def _give(self, data: bytes) -> None:
        if self._terminal is not None:
            await self._terminal.write(data)
        elif data:
            assert self._child.stdin is not None
            self._child.stdin.write(data)
            await self._child.stdin.drain()

    async def _end_input(self) -> None:
        if self._terminal is not None:
            with suppress(OSError):
                await self._terminal.write(b"\x04")
        else:
            assert self._child.stdin is not None
            self._child.stdin.close()

    async def _start_at(self, terminal: Terminal, command: Command) -> None:
        try:
            # setsid makes the terminal the one that the process is controlled by.
            self._child = await asyncio.create_subprocess_exec(
                "setsid",
                "--ctty",
                *command.argv,
                env=command.env,
                stdin=terminal.inside,
                stdout=terminal.inside,
                stderr=terminal.inside,
            )
        except BaseException:
            terminal.close()
            raise
        finally:
            terminal.close_inside()

    async def _start_piped(self, command: Command, background: Background) -> None:
        pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        err = pipe if command.keep_err else nowhere
        self._child = await asyncio.create_subprocess_exec(
            *command.argv,
            env=command.env,
            start_new_session=True,
            limit=CHUNK_BYTES,
            stdin=pipe,
            stdout=pipe if command.keep_out else nowhere,
            stderr=asyncio.subprocess.STDOUT if command.err_to_out else err,
        )
        for source, output in ((self._child.stdout, self.out), (self._child.stderr, self.err)):
            if source is None:
                output.close()
            else:
                background.spawn(_pump(source, output))

    async def _reap(self) -> None:
        self.exit = await self._child.wait()
        self.exited.set()


async def _pump(source: asyncio.StreamReader, output: Output) -> None:
    while piece := await source.read(CHUNK_BYTES):
        await output.take(piece)
    output.close()


def _descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    found = []
    with suppress(OSError):
        for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(word), *_descendants(int(word))]
    return found
