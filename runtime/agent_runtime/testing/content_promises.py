"""What a store promises about turns, transcripts and files; a part of `persistence_contract`."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import Any

from agent_runtime.errors import RuntimeFault
from agent_runtime.ports import PersistenceAdapter, StoredBlock
from agent_runtime.records import TurnStatus
from agent_runtime.testing import samples
from agent_runtime.testing.session_promises import SID, Promises
from agent_runtime.testing.stories import story

LARGE_BYTES = 5 * 1024 * 1024


class TurnPromises(Promises):
    """Turns: upserts, pages, and the one step that a message's acknowledgement stands on."""

    @story
    async def test_a_turn_comes_back_as_it_was_saved(self, store: PersistenceAdapter) -> None:
        """From queued to ended, under one id; repeating a save changes nothing."""
        await store.create_session(samples.session(SID))
        for turn in (samples.queued_turn(), samples.queued_turn(), samples.full_turn(), samples.full_turn()):
            await store.save_turn(SID, turn)
            assert await store.load_turns(SID, limit=10) == (turn,)
            assert await store.find_turn(SID, "message-0") == turn

    @story
    async def test_a_turn_is_found_by_the_clients_message_id(self, store: PersistenceAdapter) -> None:
        """Within its session only; a turn that the agent began has none."""
        for sid in (SID, "session-2"):
            await store.create_session(samples.session(sid))
        await store.save_turn(SID, samples.turn(0))
        await store.save_turn(SID, samples.turn(1, message_id=None))
        assert await store.find_turn(SID, "message-0") == samples.turn(0)
        assert await store.find_turn("session-2", "message-0") is None
        for message_id in ("message-1", "", "None", "MESSAGE-0", "message-_"):
            assert await store.find_turn(SID, message_id) is None

    @story
    async def test_turns_are_paged_backwards(self, store: PersistenceAdapter) -> None:
        """By index, whatever the order in which they were saved."""
        await store.create_session(samples.session(SID))
        for index in (3, 0, 2, 4, 1):
            await store.save_turn(SID, samples.turn(index))
        newest = await store.load_turns(SID, limit=2)
        assert [turn.index for turn in newest] == [3, 4]
        older = await store.load_turns(SID, limit=9, before=3)
        assert [turn.index for turn in older] == [0, 1, 2]
        assert await store.load_turns(SID, limit=9, before=0) == ()

    @story
    async def test_a_turn_is_never_seen_without_its_blocks(self, store: PersistenceAdapter) -> None:
        """Not while it is being saved either."""
        await store.create_session(samples.session(SID))
        count = 30

        async def save() -> None:
            for index in range(count):
                await store.save_turn(
                    SID, samples.turn(index), [StoredBlock(index, samples.text(f"turn-{index}"))]
                )

        async def look() -> None:
            last = 0
            while last < count - 1:
                turns = await store.load_turns(SID, limit=1)
                if turns:
                    last = turns[0].index
                    assert await store.block_index(SID, f"turn-{last}") == last
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as both:
            both.create_task(save())
            both.create_task(look())

    @story
    async def test_a_turn_is_saved_together_with_the_record(self, store: PersistenceAdapter) -> None:
        """And with its blocks; repeating it changes nothing; without a record that stays as it is."""
        await store.create_session(samples.full_session(SID))
        block = StoredBlock(0, samples.text())
        record = samples.session(SID, owner="bob", name="new", created_at=samples.NOON + timedelta(hours=1))
        for _ in range(2):
            await store.save_turn(SID, samples.turn(), [block], record=record)
            assert await store.load_session(SID) == record
            assert await store.load_turns(SID, limit=9) == (samples.turn(),)
            assert (await store.load_blocks(SID, limit=9)).blocks == (block,)
        assert (await store.list_sessions("ada", limit=9)).sessions == ()
        assert (await store.list_sessions("bob", limit=9)).sessions == (record,)
        await store.save_turn(SID, samples.full_turn(), [block])
        assert await store.load_session(SID) == record
        assert await store.load_turns(SID, limit=9) == (samples.full_turn(),)

    @story
    async def test_a_turn_and_the_record_are_never_seen_apart(self, store: PersistenceAdapter) -> None:
        """Whoever reads the turn reads a record that is as new, and blocks; not half of a step ever."""
        await store.create_session(samples.session(SID))
        count = 30

        async def save() -> None:
            for index in range(count):
                record = samples.session(SID, name=str(index))
                block = StoredBlock(index, samples.text(f"turn-{index}"))
                await store.save_turn(SID, samples.turn(index), [block], record=record)

        async def look() -> None:
            last = -1
            while last < count - 1:
                before = await _name(store)
                turns = await store.load_turns(SID, limit=1)
                last = turns[-1].index if turns else -1
                assert before <= last, "the record was there before its turn"
                assert last <= await _name(store), "the turn was there before its record"
                assert last < 0 or await store.block_index(SID, f"turn-{last}") == last
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as both:
            both.create_task(save())
            both.create_task(look())

    @story
    async def test_a_step_of_which_a_part_cannot_be_stored_is_not_stored_at_all(
        self, store: PersistenceAdapter
    ) -> None:
        """Whichever part it is: turn, blocks and record stay as they were."""
        endless: dict[str, Any] = {}
        endless["again"] = endless
        await store.create_session(samples.session(SID))
        await store.save_turn(SID, samples.turn(), [StoredBlock(0, samples.text())])
        good, bad = samples.session(SID, name="new"), samples.session(SID, metadata=endless)
        turn, block = samples.full_turn(), StoredBlock(0, samples.text(content="new"))
        odd = StoredBlock(1, samples.tool_use(endless))
        for blocks, record in (([block], bad), ([block, odd], good), ([odd, block], None)):
            try:
                await store.save_turn(SID, turn, blocks, record=record)
            except RuntimeFault:
                pass  # which one is the store's own word
            else:
                raise AssertionError("a value that holds itself was stored")
            assert await store.load_session(SID) == samples.session(SID)
            assert await store.load_turns(SID, limit=9) == (samples.turn(),)
            assert (await store.load_blocks(SID, limit=9)).blocks == (StoredBlock(0, samples.text()),)

    @story
    async def test_a_caller_that_is_cancelled_leaves_a_whole_step_or_none(
        self, store: PersistenceAdapter
    ) -> None:
        """And the store works on."""
        await store.create_session(samples.session(SID))
        for index in range(20):
            block = StoredBlock(index, samples.text(f"turn-{index}"))
            async with asyncio.TaskGroup() as group:
                step = store.save_turn(
                    SID, samples.turn(index), [block], record=samples.session(SID, name=str(index))
                )
                saving = group.create_task(step)
                for _ in range(index % 5):
                    await asyncio.sleep(0)
                saving.cancel()
        await store.save_turn(SID, samples.turn(99, status=TurnStatus.RUNNING))
        turns = {turn.index for turn in await store.load_turns(SID, limit=100)}
        for index in range(20):
            saved = await store.block_index(SID, f"turn-{index}")
            assert (saved == index) == (index in turns), f"half of step {index} was saved"
        assert await _name(store) == max(turns - {99}, default=-1)


async def _name(store: PersistenceAdapter) -> int:
    """The number that the session was last named with; -1 before the first."""
    record = await store.load_session(SID)
    assert record is not None
    return int(record.name or -1)


class TranscriptPromises(Promises):
    """Transcripts: opaque entries in numbered places."""

    @story
    async def test_a_transcript_comes_back_entry_by_entry(self, store: PersistenceAdapter) -> None:
        """Each key by itself; entries untouched, in the order of their places."""
        await store.create_session(samples.session(SID))
        await store.append_transcript(SID, "main", 0, [{"n": 0}, samples.OPAQUE])
        await store.append_transcript(SID, "subagents/agent-\udcff", 0, [{"n": "sub"}])
        await store.append_transcript(SID, "main", 2, [{"n": 2}])
        assert await store.load_transcript(SID) == {
            "main": [{"n": 0}, samples.OPAQUE, {"n": 2}],
            "subagents/agent-\udcff": [{"n": "sub"}],
        }

    @story
    async def test_a_place_that_is_taken_stays_as_it_is(self, store: PersistenceAdapter) -> None:
        """So repeating, in part or with more behind it, harms nothing."""
        await store.create_session(samples.session(SID))
        await store.append_transcript(SID, "main", 0, [{"n": 0}, {"n": 1}])
        await store.append_transcript(SID, "main", 0, [{"n": 0}, {"n": 1}])
        await store.append_transcript(SID, "main", 1, [{"n": "other"}, {"n": 2}])
        assert await store.load_transcript(SID) == {"main": [{"n": 0}, {"n": 1}, {"n": 2}]}

    @story
    async def test_a_hole_in_the_places_hides_nothing_and_may_be_filled(
        self, store: PersistenceAdapter
    ) -> None:
        """Order is by place, not by arrival."""
        await store.create_session(samples.session(SID))
        await store.append_transcript(SID, "main", 10, [{"n": 10}])
        await store.append_transcript(SID, "main", 0, [{"n": 0}])
        await store.append_transcript(SID, "main", 2, [{"n": 2}])
        assert await store.load_transcript(SID) == {"main": [{"n": 0}, {"n": 2}, {"n": 10}]}
        await store.append_transcript(SID, "main", 1, [{"n": 1}, {"n": "taken"}])
        assert await store.load_transcript(SID) == {"main": [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 10}]}

    @story
    async def test_appending_nothing_is_nothing(self, store: PersistenceAdapter) -> None:
        """Not even an empty key."""
        await store.create_session(samples.session(SID))
        await store.append_transcript(SID, "main", 5, [])
        assert await store.load_transcript(SID) == {}


class FilePromises(Promises):
    """Workspace files: content, manifest, odd names."""

    @story
    async def test_a_file_comes_back_byte_for_byte(self, store: PersistenceAdapter) -> None:
        """Text, bytes that are no text, nothing at all; hash and size as given."""
        await store.create_session(samples.session(SID))
        files = [
            samples.file("text", "naïve \U0001f98a\r\n".encode()),
            samples.file("nul", b"a\x00b"),
            samples.file("binary", bytes(range(256))),
            samples.file("empty", b""),
        ]
        await store.save_files(SID, files)
        for file in files:
            assert await store.load_file(SID, file.path) == file

    @story
    async def test_a_manifest_has_all_files_by_path_and_no_content(self, store: PersistenceAdapter) -> None:
        """Whatever the paths hold; each is also loaded by its own."""
        await store.create_session(samples.session(SID))
        files = [samples.file(path, path.encode("utf-8", "surrogatepass")) for path in samples.ODD_PATHS]
        await store.save_files(SID, files)
        manifest = await store.load_manifest(SID)
        assert [file.path for file in manifest] == sorted(samples.ODD_PATHS)
        assert set(manifest) == {file.model_copy(update={"content": None}) for file in files}
        for file in files:
            assert await store.load_file(SID, file.path) == file

    @story
    async def test_a_file_saved_again_is_replaced(self, store: PersistenceAdapter) -> None:
        """Repeating changes nothing."""
        await store.create_session(samples.session(SID))
        await store.save_files(SID, [samples.file("a", b"old"), samples.file("b", b"b")])
        for _ in range(2):
            await store.save_files(SID, [samples.file("a", b"newer")])
            assert await store.load_file(SID, "a") == samples.file("a", b"newer")
            assert [file.size_bytes for file in await store.load_manifest(SID)] == [5, 1]

    @story
    async def test_a_file_whose_content_is_not_kept_is_kept_without_it(
        self, store: PersistenceAdapter
    ) -> None:
        """Also where there was a content before; and one that can be kept again is kept whole."""
        await store.create_session(samples.session(SID))
        whole = samples.file("grown", b"small")
        large = whole.model_copy(
            update={"size_bytes": 2**40, "sha256": "", "content": None, "omitted": "too_large"}
        )
        closed = large.model_copy(update={"path": "closed", "omitted": "unreadable"})
        await store.save_files(SID, [whole])
        await store.save_files(SID, [large, closed])
        assert await store.load_manifest(SID) == (closed, large)
        assert await store.load_file(SID, "grown") == large
        assert await store.load_file(SID, "closed") == closed
        await store.save_files(SID, [whole])
        assert await store.load_file(SID, "grown") == whole

    @story
    async def test_deleted_files_are_gone_and_unknown_ones_ignored(self, store: PersistenceAdapter) -> None:
        """Paths are names, not patterns."""
        await store.create_session(samples.session(SID))
        await store.save_files(SID, [samples.file(path) for path in samples.ODD_PATHS])
        for _ in range(2):
            await store.delete_files(SID, [samples.ODD_PATHS[0], "%", "*", "", "unknown"])
            assert await store.load_file(SID, samples.ODD_PATHS[0]) is None
            assert len(await store.load_manifest(SID)) == len(samples.ODD_PATHS) - 1
        await store.delete_files(SID, samples.ODD_PATHS)
        assert await store.load_manifest(SID) == ()

    @story
    async def test_large_values_come_back_whole(self, store: PersistenceAdapter) -> None:
        """A file and a block of five mebibytes each."""
        await store.create_session(samples.session(SID))
        text = samples.file("large.txt", b"0123456789abcdef" * (LARGE_BYTES // 16))
        binary = samples.file("large.bin", os.urandom(LARGE_BYTES))
        await store.save_files(SID, [text, binary])
        block = samples.text("large", "\N{FOX FACE}" * (LARGE_BYTES // 4))
        await store.save_blocks(SID, samples.stored(block))
        assert await store.load_file(SID, "large.txt") == text
        assert await store.load_file(SID, "large.bin") == binary
        assert (await store.load_blocks(SID, limit=1)).blocks == (StoredBlock(0, block),)
