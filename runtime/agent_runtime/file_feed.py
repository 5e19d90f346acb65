"""FileFeed: file reports of a runner, brought to the recorder with their contents, and told to viewers.

Small files come with their report; others are read afterwards, one by one, so that a large file
holds nobody up. Reports are checked by `workspace`; frames reach us through `runner_feed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from agent_runtime.blocks import BlockState, System
from agent_runtime.clock import now
from agent_runtime.errors import SandboxFault
from agent_runtime.events import BlockComplete, BlockStart, FileChanged
from agent_runtime.log_lines import LogLines
from agent_runtime.profile import FileRules
from agent_runtime.recorder import Recorder
from agent_runtime.runner_link import REFUSED, RunnerLink
from agent_runtime.workspace import FileReport, file_of, read_report, shown
from agent_runtime_sandbox.frames import Frame

_log = structlog.get_logger(__name__)

_ROOM: Final = 2
"""Times the files that are kept: those that are known include some that a new sandbox does not have."""
_REFUSALS: Final = frozenset({REFUSED, "file_too_large"})


class FileFeed:
    """The file frames of one link. `_unread`: reports whose content is still to be read, by path."""

    def __init__(
        self,
        link: RunnerLink,
        recorder: Recorder,
        *,
        turn_id: Callable[[], str | None],
        max_files: int = FileRules().max_files,
    ) -> None:
        self._link = link
        self._recorder = recorder
        self._turn_id = turn_id
        self._most = max_files * _ROOM
        self._lines = LogLines()
        self._unread: dict[str, FileReport] = {}
        self._told = asyncio.Event()
        self._fetching = asyncio.Lock()

    def oldest_unread(self) -> int | None:
        """The smallest journal offset among reports whose content is still to be read, or is being read."""
        return min((report.offset for report in self._unread.values()), default=None)

    def try_again(self) -> None:
        """The runner gives signs of life: what could not be read may be readable now."""
        if self._unread:
            self._told.set()

    async def take(self, frame: Frame) -> None:
        """Note a `file` frame and tell viewers; a malformed one is refused and logged."""
        report = read_report(frame)
        if report is None or not (report.file.path in self._recorder.files or self._has_room()):
            self._refused()
            return
        if report.file.path in self._recorder.restoring:
            return
        self._unread.pop(report.file.path, None)  # whatever is being read of it now comes too late
        if report.change == "deleted":
            self._recorder.file_changed(report.file, deleted=True)
        elif report.content is not None or report.file.omitted:
            self._recorder.file_changed(report.file, deleted=False)
        else:
            self._recorder.file_seen(report.file)
            self._unread[report.file.path] = report
            self._told.set()
        event = FileChanged(change=report.change, file=shown(report), turn_id=self._turn_id())
        await self._recorder.publish([event])

    def _refused(self) -> None:
        event = "file_report_refused"
        self._lines.say(event, _log.warning, event, session_id=self._recorder.session_id)

    def _has_room(self) -> bool:
        """No honest runner tells of so many; whoever does must not fill our memory."""
        return len(self._recorder.files) < self._most

    async def left_out(self, frame: Frame) -> None:
        """Tell viewers that the workspace has more files than are kept."""
        sandbox_id = self._link.sandbox.ref.sandbox_id
        block = System(
            id=f"files-left-out-{sandbox_id}-{frame['o']}",
            turn_id=self._turn_id(),
            timestamp=now(),
            subtype="files_left_out",
            message="The workspace has more files than are kept: further new files will be lost with the "
            "sandbox.",
        )
        start = BlockStart(block=block.model_copy(update={"state": BlockState.STREAMING}))
        await self._recorder.publish([start, BlockComplete(block_id=block.id, block=block)])

    async def fetch_when_told(self) -> None:
        """Read contents as they become due, until cancelled."""
        while True:
            await self._told.wait()
            await self.fetch()

    async def fetch(self) -> None:
        """Read the files whose content did not come with their report.

        What cannot be read for now waits for the next time; who is refused changed or vanished, and
        another report tells of it.
        """
        async with self._fetching:
            self._told.clear()
            for report in list(self._unread.values()):
                if self._is_due(report) and not await self._bring_in(report):
                    return

    def _is_due(self, report: FileReport) -> bool:
        """Whether this is still the newest that we know of its file."""
        return self._unread.get(report.file.path) is report

    async def _bring_in(self, report: FileReport) -> bool:
        """Read one file; False where nothing can be read at the moment."""
        path = report.file.path
        try:
            content = await self._link.read_file(path)
        except SandboxFault as fault:
            _log.warning("file_not_read", session_id=self._recorder.session_id, code=fault.code)
            if fault.code not in _REFUSALS:
                return False
            if fault.code == "file_too_large" and self._is_due(report):  # whatever its report said
                omitted = report.file.model_copy(update={"omitted": "too_large", "sha256": ""})
                self._recorder.file_changed(omitted, deleted=False)
        else:
            if self._is_due(report):  # else it changed again meanwhile
                file = file_of(path, content, modified_at=report.file.modified_at)
                self._recorder.file_changed(file, deleted=False)
        if self._is_due(report):
            del self._unread[path]
        return True
