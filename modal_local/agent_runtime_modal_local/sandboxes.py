"""All sandboxes: made, watched until they end, found by id, and never left behind."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as api

from agent_runtime_modal_local.background import Background
from agent_runtime_modal_local.cgroup import Groups, within
from agent_runtime_modal_local.clock import Clock
from agent_runtime_modal_local.enclosure import ENVIRONMENT, Enclosures, NoEnclosure
from agent_runtime_modal_local.images import Image, Images, new_id
from agent_runtime_modal_local.processes import Command, Process
from agent_runtime_modal_local.sandbox import HOME, Result, Sandbox, ended, not_offered
from agent_runtime_modal_local.terminal import TerminalSize

MOST_LIFETIME_S: Final = 24 * 3600
MEMORY_LOOK_S: Final = 0.1
ENDED_KEPT: Final = 500
"""How many ended sandboxes are still known by their id."""
OUTPUTS_KEPT: Final = 16
"""Of how many of them it can still be read what their entrypoint printed."""
V1_ID_LENGTH, V2_ID_LENGTH = 22, 26
_Access = api.NetworkAccess.NetworkAccessType


@dataclass(frozen=True, slots=True)
class Start:
    """A process to start in a sandbox."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    workdir: str = ""
    terminal: TerminalSize | None = None
    keep_out: bool = True
    keep_err: bool = True
    err_to_out: bool = False


class Sandboxes:
    """The living ones, and for a while those that have ended."""

    def __init__(
        self, folder: Path, enclosures: Enclosures, images: Images, clock: Clock, background: Background
    ) -> None:
        self._folder = folder
        self._enclosures = enclosures
        self._images = images
        self._clock = clock
        self._background = background
        self._groups = Groups()
        self._known: dict[str, Sandbox] = {}

    async def create(
        self,
        app_id: str,
        asked: api.Sandbox,
        tags: Iterable[api.SandboxTag],
        env: Mapping[str, str],
        *,
        v2: bool,
    ) -> Sandbox:
        """Make a sandbox and watch it until it ends. Raises `GRPCError`."""
        image = self._images.get(asked.image_id)
        self._check(app_id, asked)
        # The SDK tells the two backends apart by the shape of an id.
        sandbox_id = new_id("sb-", V2_ID_LENGTH if v2 else V1_ID_LENGTH)
        folder = self._folder / sandbox_id
        group = self._groups.of(sandbox_id, asked.resources.memory_mb_max)
        try:
            await self._images.unpack(image, asked.mount_ids, folder / "root")
            network = not _blocks_all(asked.network_access)
            enclosure = await self._enclosures.make(
                folder, workdir=image.workdir or HOME, network=network, group=group
            )
        except (OSError, NoEnclosure, TimeoutError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            if group is not None:
                group.remove()
            raise GRPCError(Status.INTERNAL, f"the sandbox could not be made: {error}") from error
        now = self._clock.now()
        sandbox = Sandbox(
            sandbox_id=sandbox_id,
            task_id=new_id("ta-") + ("V" if v2 else "1"),
            app_id=app_id,
            asked=asked,
            image=image,
            folder=folder,
            env={**ENVIRONMENT, **image.env, **env},
            tags={tag.tag_name: tag.tag_value for tag in tags},
            began=now,
            active_at=now,
            enclosure=enclosure,
            group=group,
        )
        self._known[sandbox_id] = sandbox
        self._background.spawn(self._watch(sandbox))
        try:
            await self._start_main(sandbox)
        except GRPCError:
            await self.end(sandbox, ended("init_failure"))
            raise
        return sandbox

    def get(self, sandbox_id: str) -> Sandbox:
        """Living or ended. Raises `GRPCError` (NOT_FOUND)."""
        if sandbox_id not in self._known:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox {sandbox_id} not found")
        return self._known[sandbox_id]

    def of_task(self, task_id: str, *, living: bool = True) -> Sandbox:
        """By its task, which is gone with it. Raises `GRPCError` (NOT_FOUND)."""
        for sandbox in self._known.values():
            if sandbox.task_id == task_id and (sandbox.result is None or not living):
                return sandbox
        raise GRPCError(Status.NOT_FOUND, f"task {task_id} not found")

    def all(self) -> tuple[Sandbox, ...]:
        """The newest last."""
        return tuple(self._known.values())

    async def start(self, sandbox: Sandbox, start: Start) -> Process:
        """Start a process inside. Raises `GRPCError`."""
        sandbox.active_at = self._clock.now()
        ids = {"MODAL_SANDBOX_ID": sandbox.sandbox_id, "MODAL_TASK_ID": sandbox.task_id}
        terminal = {"TERM": "xterm-256color"} if start.terminal else {"TERM": "dumb"}
        inside = sandbox.enclosure.enter(start.argv, start.workdir or sandbox.workdir)
        command = Command(
            argv=within(sandbox.group, inside),
            env={**terminal, **sandbox.env, **ids, **start.env},
            terminal=start.terminal,
            keep_out=start.keep_out,
            keep_err=start.keep_err,
            err_to_out=start.err_to_out,
        )
        try:
            return await Process.start(command, sandbox.folder, self._background)
        except (OSError, ValueError) as error:
            raise GRPCError(Status.INVALID_ARGUMENT, f"the process could not be started: {error}") from error

    async def snapshot(self, sandbox: Sandbox) -> Image:
        """Its files as an image; it goes on meanwhile. Raises `GRPCError` (INTERNAL)."""
        try:
            return await self._images.keep(sandbox.root, sandbox.image)
        except OSError as error:
            raise GRPCError(Status.INTERNAL, f"the snapshot failed: {error}") from error

    def follow(self, sandbox: Sandbox, process: Process, seconds: float | None) -> None:
        """End a process after so many seconds; look at its sandbox as soon as it has exited."""
        self._background.spawn(self._until_exit(sandbox, process, seconds))

    async def end(self, sandbox: Sandbox, result: Result) -> None:
        """End it now. The first result stays."""
        if sandbox.result is not None:
            await sandbox.ended.wait()
            return
        sandbox.result = result
        await sandbox.enclosure.end()
        for process in sandbox.execs.values():
            await process.exited.wait()
            process.forget()
        if sandbox.main is not None:
            await sandbox.main.exited.wait()
        sandbox.execs.clear()
        sandbox.ended.set()
        sandbox.nudge.set()
        await asyncio.to_thread(shutil.rmtree, sandbox.folder, ignore_errors=True)
        await self._remove_group(sandbox)
        self._forget_old()

    async def close(self) -> None:
        """End all."""
        async with asyncio.TaskGroup() as ending:
            for sandbox in self.all():
                ending.create_task(self.end(sandbox, ended("terminated")))
        self._groups.close()

    def _check(self, app_id: str, asked: api.Sandbox) -> None:
        if asked.timeout_secs > MOST_LIFETIME_S:
            raise GRPCError(Status.INVALID_ARGUMENT, "Sandbox timeout cannot be longer than 24 hours")
        if lacking := not_offered(asked):
            raise GRPCError(Status.UNIMPLEMENTED, f"the local Modal does not offer {', '.join(lacking)}")
        living = (each for each in self._known.values() if each.result is None and each.app_id == app_id)
        if asked.name and any(each.asked.name == asked.name for each in living):
            raise GRPCError(Status.ALREADY_EXISTS, f"Sandbox with name '{asked.name}' already exists")

    async def _start_main(self, sandbox: Sandbox) -> None:
        argv = tuple(sandbox.asked.entrypoint_args)
        if not argv:
            return
        pty = sandbox.asked.pty_info
        terminal = TerminalSize(pty.winsz_rows or 24, pty.winsz_cols or 80) if pty.enabled else None
        sandbox.main = await self.start(sandbox, Start(argv, {}, terminal=terminal))
        self.follow(sandbox, sandbox.main, None)

    async def _until_exit(self, sandbox: Sandbox, process: Process, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await process.exited.wait()
        except TimeoutError:
            process.timed_out = True
            process.kill()
            await process.exited.wait()
        sandbox.active_at = self._clock.now()
        sandbox.nudge.set()

    async def _watch(self, sandbox: Sandbox) -> None:
        async with asyncio.TaskGroup() as watching:
            gone = watching.create_task(sandbox.enclosure.outer.wait())
            gone.add_done_callback(lambda _: sandbox.nudge.set())
            moves = watching.create_task(self._nudge_when_time_moves(sandbox))
            while sandbox.result is None:
                sandbox.nudge.clear()
                now = self._clock.now()
                if (result := sandbox.verdict(now)) is not None:
                    await self.end(sandbox, result)
                    break
                bound = sandbox.next_look(now)
                if sandbox.group is not None:
                    bound = min(bound, MEMORY_LOOK_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(bound):
                        await sandbox.nudge.wait()
            moves.cancel()

    async def _nudge_when_time_moves(self, sandbox: Sandbox) -> None:
        while True:
            await self._clock.moved.wait()
            sandbox.nudge.set()

    async def _remove_group(self, sandbox: Sandbox) -> None:
        """The kernel needs a moment to let the last process out of it."""
        for _ in range(100):
            if sandbox.group is None or sandbox.group.remove():
                return
            await asyncio.sleep(0.02)

    def _forget_old(self) -> None:
        over = [each for each in self._known.values() if each.result is not None]
        for sandbox in over[:-OUTPUTS_KEPT]:
            if sandbox.main is not None:
                sandbox.main.forget()
        for sandbox in over[:-ENDED_KEPT]:
            del self._known[sandbox.sandbox_id]


def _blocks_all(access: api.NetworkAccess) -> bool:
    """Whether nothing at all may be reached. Lists of what may be are recorded, and not enforced."""
    listed = access.allowed_cidrs or access.allowed_domains
    kind = access.network_access_type
    return kind == _Access.BLOCKED or (kind == _Access.ALLOWLIST and not listed)
