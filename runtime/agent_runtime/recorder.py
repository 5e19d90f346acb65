"""Recorder: what happens in one session is appended to the log, folded, and made durable.

Three kinds of record leave here: blocks (saved in batches as soon as they are complete), files and
the agent's transcript (saved on the sync timer), all of them before a turn's end. All writes of one
session go through here, one at a time; what happens while the store does not take them is in
`store_calls`. The recorder does not know the agent, the sandbox or the lifecycle: `session` feeds it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from agent_runtime.blocks import Block
from agent_runtime.conversation import Conversation, merge_deltas
from agent_runtime.events import BlockComplete, BlockStart, Event, LogEntry, MetadataUpdate, Position
from agent_runtime.ports import EventLog, PersistenceAdapter, StoredBlock
from agent_runtime.records import SessionRecord, Turn, WorkspaceFile
from agent_runtime.store_calls import StoreCalls

_UNSAVED_BYTES: Final = 64 * 1024 * 1024
"""Files and transcript that wait for a store; beyond it the sandbox's journal, on disk, holds the rest."""
_KEPT_BLOCKS: Final = 400
"""Complete blocks held in memory during a turn: what is told of them once more finds them in their place."""


class Recorder:
    """The one writer of a session's log and records. All methods run on the session's loop.

    Args:
        record: the session as it was loaded.
        conversation: its newest blocks.
        files: the manifest as it is stored (no content).
        position: the log's head; `position` always names the last event that was folded.
        page: so many blocks a joining viewer gets; between turns no more are held.

    `calls` are those to the store, and know its `fault`. `full` says that so much waits to be saved that no
    more should be brought in; `relieved` is called when either changes. While `silent`, events are folded
    and not appended: they were told before, to a log that is no more. `restoring` are files that are just
    being put back: whatever a sandbox reports of them then, the store is right.
    """

    def __init__(
        self,
        record: SessionRecord,
        conversation: Conversation,
        *,
        files: Sequence[WorkspaceFile],
        position: Position,
        log: EventLog,
        persistence: PersistenceAdapter,
        sync_interval_s: float,
        page: int,
    ) -> None:
        self.record = record
        self.conversation = conversation
        self.files = {file.path: file for file in files}
        self.restoring: frozenset[str] = frozenset()
        self.calls = StoreCalls(record.session_id, settled=self._write_settled)
        self.silent = False
        self.relieved: Callable[[], None] = lambda: None
        self.position = position
        self._log = log
        self._persistence = persistence
        self._sync_interval_s = sync_interval_s
        self._page = page
        self._blocks: dict[str, None] = {}
        self._stored_ahead: tuple[Block, ...] = ()
        self._unsaved_files: dict[str, WorkspaceFile | None] = {}
        self._transcript: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self._transcript_next: dict[str, int] = {}
        self._unsaved_bytes = 0
        self._noted = False
        self._dirty = asyncio.Event()
        self._writing = asyncio.Lock()
        self._publishing = asyncio.Lock()
        self._placing = asyncio.Lock()

    @property
    def session_id(self) -> str:
        """The session that is recorded."""
        return self.record.session_id

    def _write_settled(self) -> None:
        self.relieved()

    async def publish(self, events: Sequence[Event]) -> None:
        """Append events in order, neighbouring deltas merged, and fold them.

        A new block waits for one whose place is held. The other lock keeps fold and position together when
        several tasks publish at once.
        """
        merged = merge_deltas(events)
        if any(isinstance(event, BlockStart) and event.block.id not in self.conversation for event in merged):
            async with self._placing:
                await self._append(merged)
        elif merged:
            await self._append(merged)

    @contextlib.asynccontextmanager
    async def place(self, block: Block) -> AsyncIterator[StoredBlock]:
        """Give a block its place before it is told of, and hold it: no other block begins meanwhile.

        So what is in the store has the order in which viewers heard of it.
        """
        async with self._placing:
            try:
                yield self.conversation.add(block)
            finally:
                self._stored_ahead = ()

    async def _append(self, merged: Sequence[Event]) -> None:
        async with self._publishing:
            if self.silent:
                for event in merged:
                    self._fold(event)
                return
            self._appended(await self._log.append(self.session_id, merged))

    def publish_at_once(self, deltas: Sequence[Event]) -> bool:
        """The same for deltas, where nothing has to be waited for; False: nothing was done, use `publish`."""
        if self.silent or self._publishing.locked():
            return False
        entries = self._log.append_at_once(self.session_id, merge_deltas(deltas))
        if entries is None:
            return False
        self._appended(entries)
        return True

    def _appended(self, entries: Sequence[LogEntry]) -> None:
        for entry in entries:
            self.position = entry.position
            self._fold(entry.event)

    def _fold(self, event: Event) -> None:
        if isinstance(event, MetadataUpdate):
            self._note_totals(event)
        block_id = self.conversation.apply(event)
        if block_id is not None and not self._is_stored_ahead(event):
            self._blocks[block_id] = None
            self._dirty.set()

    def _is_stored_ahead(self, event: Event) -> bool:
        """Whether the store has this very block: to save it again took a commit of its own."""
        return isinstance(event, BlockComplete) and any(event.block is each for each in self._stored_ahead)

    def speak(self) -> None:
        """End the silence: what follows is new."""
        if self.silent:
            self.silent = False
            self.conversation.told_again()
            self._dirty.set()

    @property
    def dirty(self) -> bool:
        """Whether anything waits to be saved."""
        waiting = self._noted or self._blocks or self._unsaved_files or self._transcript
        return bool(waiting) or self._writing.locked()

    @property
    def full(self) -> bool:
        """Whether too much waits to be saved."""
        return self._unsaved_bytes > _UNSAVED_BYTES

    def _note_totals(self, event: MetadataUpdate) -> None:
        """Running totals go into the record; they are saved with it at the end of the turn.

        The cost comes with the end itself: a record with the cost of a turn that has not ended would hide
        it from whoever ends that turn after a restart.
        """
        names = ("usage", "model", "context_tokens")
        told = {name: value for name in names if (value := getattr(event, name)) is not None}
        self.record = self.record.model_copy(update=told)

    def file_seen(self, file: WorkspaceFile) -> None:
        """Know a file whose content is still to come: whoever joins now must hear of it."""
        self.files[file.path] = file.model_copy(update={"content": None})

    def file_changed(self, file: WorkspaceFile, *, deleted: bool) -> None:
        """Remember a change of the workspace for the next sync; `file` has its content unless deleted."""
        self._unsaved_files[file.path] = None if deleted else file
        self._unsaved_bytes += len(file.content or "")
        if deleted:
            self.files.pop(file.path, None)
        else:
            self.files[file.path] = file.model_copy(update={"content": None})
        self._dirty.set()

    @property
    def transcript_lengths(self) -> dict[str, int]:
        """How many entries each key has, those included that are still to be saved."""
        return dict(self._transcript_next)

    def knows_transcript(self, key: str, most: int) -> bool:
        """Whether there is such a key, or room for one more below so many."""
        return key in self._transcript_next or len(self._transcript_next) < most

    def transcript_stored(self, lengths: dict[str, int]) -> None:
        """Note how many entries of each key there are; new ones are counted on from there."""
        self._transcript_next = dict(lengths)

    def transcript_grew(self, key: str, entries: Sequence[dict[str, Any]], *, size_bytes: int) -> None:
        """Remember new entries of the agent's transcript for the next sync; `size_bytes` is about all."""
        self._unsaved_bytes += size_bytes
        place = self._transcript_next.get(key, 0)
        first, waiting = self._transcript.setdefault(key, (place, []))
        waiting.extend(entries)
        self._transcript_next[key] = first + len(waiting)
        self._dirty.set()

    async def save_turn(self, turn: Turn, blocks: Sequence[StoredBlock] = (), **changes: Any) -> None:
        """Make a turn durable, with blocks and changes of the record at once, until the store takes it."""
        async with self._writing:
            if changes:  # not before it is our turn: nobody else may store them without the turn
                self.record = self.record.model_copy(update=changes)
            is_stored = await self.calls.until_saved(
                lambda: self._persistence.save_turn(
                    self.session_id, turn, blocks, record=self.record if changes else None
                )
            )
        self._stored_ahead = tuple(each.block for each in blocks) if is_stored else ()

    async def save_end(self, turn: Turn, **changes: Any) -> None:
        """Make a turn's end durable with all that is not: in one call, but for files and transcript."""
        if self._transcript:
            await self._save_noted()  # whose it is must be known before any of it
        if self._transcript or self._unsaved_files:
            await self._save_workspace()
        async with self._unsaved_blocks() as blocks:
            self.record = self.record.model_copy(update=changes)
            if not await self._turn_saved(turn, blocks):
                await self._save_each(blocks)
                await self._turn_saved(turn, ())
        self.conversation.trim(self._page, unsaved=self._blocks.keys())

    async def _turn_saved(self, turn: Turn, blocks: Sequence[StoredBlock]) -> bool:
        """With the record as it is; what was noted in it needs no saving of its own."""
        noted, self._noted = self._noted, False
        try:
            return await self.calls.until_saved(
                lambda: self._persistence.save_turn(self.session_id, turn, blocks, record=self.record)
            )
        except BaseException:
            self._noted = noted or self._noted
            raise

    async def update_record(self, **changes: Any) -> None:
        """Change the session's record and make it durable."""
        self.record = self.record.model_copy(update=changes)
        await self._save_record()

    def note(self, **changes: Any) -> None:
        """Change the session's record; it is made durable soon, and nobody waits for it."""
        self.record = self.record.model_copy(update=changes)
        self._noted = True
        self._dirty.set()

    async def _save_noted(self) -> None:
        if not self._noted:
            return
        self._noted = False
        try:
            await self._save_record()
        except BaseException:
            self._noted = True  # cancelled in mid-write: it is still to be saved
            raise

    async def _save_record(self) -> None:
        async with self._writing:
            await self.calls.until_saved(lambda: self._persistence.update_session(self.record))

    async def flush(self) -> None:
        """Make everything durable that is not; returns when it is."""
        await self._save_noted()
        await self._save_blocks()
        await self._save_workspace()

    async def keep_in_sync(self) -> None:
        """Save blocks as they complete, files and transcript on the timer. Runs until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self.silent:
                continue  # what is told again is in the making, and in the store as it was
            await self._save_noted()
            await self._save_blocks()
            if self._unsaved_files or self._transcript:
                await asyncio.sleep(self._sync_interval_s)
                # Whose transcript it is must be known before any of it: it could not be resumed else.
                await self._save_noted()
                await self._save_workspace(files_alone=self.record.agent_session_id is None)

    async def _save_blocks(self) -> None:
        async with self._unsaved_blocks() as stored:
            if stored and not await self._blocks_saved(stored):
                await self._save_each(stored)

    @contextlib.asynccontextmanager
    async def _unsaved_blocks(self) -> AsyncIterator[Sequence[StoredBlock]]:
        """Take the blocks that are to be saved; they still are where saving them is broken off."""
        async with self._writing:
            ids, self._blocks = self._blocks, {}
            try:
                yield self.conversation.stored(ids)
            except BaseException:
                self._blocks = ids | self._blocks
                self._dirty.set()
                raise
            self.conversation.trim(_KEPT_BLOCKS, unsaved=self._blocks.keys())

    async def _save_each(self, blocks: Sequence[StoredBlock]) -> None:
        """One of them is at fault; the others are not."""
        for block in blocks:
            await self._blocks_saved((block,))

    async def _blocks_saved(self, blocks: Sequence[StoredBlock]) -> bool:
        return await self.calls.until_saved(lambda: self._persistence.save_blocks(self.session_id, blocks))

    async def _save_workspace(self, *, files_alone: bool = False) -> None:
        async with self._writing:
            files, self._unsaved_files = self._unsaved_files, {}
            transcript = {} if files_alone else self._transcript
            self._transcript = self._transcript if files_alone else {}
            saving = 0 if files_alone and self._transcript else self._unsaved_bytes
            try:
                await self._save_files(files)
                for key, (place, entries) in transcript.items():
                    await self._save_entries(key, place, entries)
                self._unsaved_bytes -= saving
                self.relieved()
            except BaseException:
                self._unsaved_files = files | self._unsaved_files
                for key, (place, newer) in self._transcript.items():
                    transcript.setdefault(key, (place, []))[1].extend(newer)
                self._transcript = transcript
                self._dirty.set()
                raise

    async def _save_files(self, files: dict[str, WorkspaceFile | None]) -> None:
        if saved := [file for file in files.values() if file is not None]:
            await self.calls.until_saved(lambda: self._persistence.save_files(self.session_id, saved))
        if gone := [path for path, file in files.items() if file is None]:
            await self.calls.until_saved(lambda: self._persistence.delete_files(self.session_id, gone))

    async def _save_entries(self, key: str, place: int, entries: list[dict[str, Any]]) -> None:
        await self.calls.until_saved(
            lambda: self._persistence.append_transcript(self.session_id, key, place, entries)
        )
