"""The feed of file reports: what is still to be read is known, and what came too late is not kept."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agent_runtime.conversation import Conversation
from agent_runtime.file_feed import FileFeed
from agent_runtime.recorder import Recorder
from agent_runtime.testing import samples
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from agent_runtime_sandbox.frames import Frame
from tests.runtime.test_runner_link import Side, linked

LARGE = b"x" * 500


@dataclass
class Fed:
    """A feed over a real link, the runner's side of it, and what gets into the store."""

    feed: FileFeed
    side: Side
    recorder: Recorder
    store: MemoryPersistence

    async def asked(self) -> Frame:
        """The next file that the feed asks for."""
        while (frame := await self.side.line())["k"] != "read":
            pass
        return frame

    def answer(self, asked: Frame, content: bytes) -> None:
        data = base64.b64encode(content).decode()
        chunk = {"k": "chunk", "id": asked["id"], "data": data, "last": True}
        self.side.say(chunk, {"k": "reply", "id": asked["id"], "ok": True, "result": {}})

    def refuse(self, asked: Frame) -> None:
        error = {"code": "not_found", "message": "no such file"}
        self.side.say({"k": "reply", "id": asked["id"], "ok": False, "error": error})

    async def stored(self) -> dict[str, str | None]:
        await self.recorder.flush()
        manifest = await self.store.load_manifest("session-1")
        files = [await self.store.load_file("session-1", file.path) for file in manifest]
        return {file.path: file.content for file in files if file is not None}


@asynccontextmanager
async def fed() -> AsyncIterator[Fed]:
    store, log = MemoryPersistence(), MemoryEventLog()
    await store.open()
    record = samples.session("session-1")
    await store.create_session(record)
    recorder = Recorder(
        record,
        Conversation(),
        files=(),
        position=await log.head("session-1"),
        log=log,
        persistence=store,
        sync_interval_s=0.001,
        page=50,
    )
    async with asyncio.timeout(10), linked() as (link, sandbox, _):
        yield Fed(FileFeed(link, recorder, turn_id=lambda: None), sandbox.sides[0], recorder, store)
    await store.close()


def report(offset: int, path: str, content: bytes | None = None, change: str = "created") -> Frame:
    """A report with its content, or of a large file whose content is to be read."""
    told: dict[str, Any] = {"k": "file", "o": offset, "path": path, "change": change, "mtime": 0}
    if content is not None:
        return {**told, "size": len(content), "encoding": "utf-8", "content": content.decode()}
    return {**told, "size": len(LARGE), "sha256": hashlib.sha256(LARGE).hexdigest()}


async def test_the_oldest_report_that_is_still_to_be_read_is_known() -> None:
    async with fed() as it, asyncio.TaskGroup() as tasks:
        assert it.feed.oldest_unread() is None
        for frame in (report(3, "small", b"s"), report(4, "a"), report(7, "b"), report(9, "c")):
            await it.feed.take(frame)
        assert it.feed.oldest_unread() == 4
        fetching = tasks.create_task(it.feed.fetch())
        first = await it.asked()
        assert it.feed.oldest_unread() == 4, "it is being read"
        it.answer(first, LARGE)
        second = await it.asked()
        assert it.feed.oldest_unread() == 7
        await it.feed.take(report(11, "b", change="modified"))
        assert it.feed.oldest_unread() == 9, "what was told of it before is of no interest any more"
        it.answer(second, b"old")
        it.refuse(await it.asked())
        await fetching
        assert it.feed.oldest_unread() == 11
        again = tasks.create_task(it.feed.fetch())
        it.answer(await it.asked(), LARGE)
        await again
        assert it.feed.oldest_unread() is None
        assert await it.stored() == {"small": "s", "a": LARGE.decode(), "b": LARGE.decode()}


async def test_a_file_that_is_deleted_while_it_is_read_stays_deleted() -> None:
    async with fed() as it, asyncio.TaskGroup() as tasks:
        await it.feed.take(report(1, "a"))
        fetching = tasks.create_task(it.feed.fetch())
        asked = await it.asked()
        await it.feed.take(report(2, "a", change="deleted"))
        it.answer(asked, LARGE)
        await fetching
        assert it.feed.oldest_unread() is None
        assert await it.stored() == {}


async def test_a_file_that_became_small_while_it_was_read_is_small() -> None:
    async with fed() as it, asyncio.TaskGroup() as tasks:
        await it.feed.take(report(1, "a"))
        fetching = tasks.create_task(it.feed.fetch())
        asked = await it.asked()
        await it.feed.take(report(2, "a", b"small", change="modified"))
        it.answer(asked, LARGE)
        await fetching
        assert await it.stored() == {"a": "small"}


async def test_a_file_that_waits_its_turn_and_is_deleted_meanwhile_is_not_asked_for() -> None:
    async with fed() as it, asyncio.TaskGroup() as tasks:
        await it.feed.take(report(1, "a"))
        await it.feed.take(report(2, "b"))
        fetching = tasks.create_task(it.feed.fetch())
        asked = await it.asked()
        await it.feed.take(report(3, "b", change="deleted"))
        it.answer(asked, LARGE)
        await fetching
        assert await it.stored() == {"a": LARGE.decode()}


async def test_a_file_that_grows_too_large_is_kept_without_its_content() -> None:
    async with fed() as it:
        await it.feed.take(report(1, "a", b"small"))
        assert await it.stored() == {"a": "small"}
        too_large = {**report(2, "a", change="modified"), "sha256": None, "omitted": "too_large"}
        await it.feed.take(too_large)
        assert it.feed.oldest_unread() is None
        assert await it.stored() == {"a": None}
        (known,) = await it.store.load_manifest("session-1")
        assert (known.omitted, known.size_bytes, known.sha256) == ("too_large", len(LARGE), "")
