"""The outbox holds producers back and loses nothing when the journal takes no more."""

import asyncio
import json
import tempfile

import pytest

from agent_runtime_sandbox import frames
from agent_runtime_sandbox.journal import Journal
from agent_runtime_sandbox.long_lines import MAX_VALUES
from agent_runtime_sandbox.outbox import Outbox
from tests.sandbox_image.test_journal import files_of_at_most


def read_all(outbox: Outbox) -> list[dict[str, object]]:
    data, _ = outbox.read(0, 2**20)
    return [json.loads(line) for line in data.splitlines()]


async def test_a_full_disk_delays_frames_and_loses_none() -> None:
    with tempfile.TemporaryFile() as file:
        outbox = Outbox(Journal(file.fileno()))
        outbox.emit("agent", line={"n": 1})
        with files_of_at_most(100):
            outbox.emit("agent", line={"n": 2, "text": "x" * 200})
            outbox.emit("agent", line={"n": 3})
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await outbox.room()
            assert len(read_all(outbox)) == 1
        async with asyncio.timeout(20):
            await outbox.room()
        assert [frame["o"] for frame in read_all(outbox)] == [1, 2, 3]


async def test_over_its_bound_it_has_room_again_after_an_ack() -> None:
    with tempfile.TemporaryFile() as file:
        outbox = Outbox(Journal(file.fileno(), stride=64), limit=1000)
        for _ in range(20):
            outbox.emit("agent", line={"text": "x" * 100})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await outbox.room()
        outbox.ack(18)
        async with asyncio.timeout(20):
            await outbox.room()


async def test_a_line_over_the_bound_of_frames_is_told_as_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_LINE_BYTES", 1000)
    with tempfile.TemporaryFile() as file:
        outbox = Outbox(Journal(file.fileno()))
        outbox.emit("agent", line={"text": "x" * 2000})
        assert [(frame["k"], frame["code"]) for frame in read_all(outbox)] == [("fault", "line_too_long")]


async def test_a_line_that_would_be_millions_of_objects_is_told_as_left_out_and_read_by_nobody() -> None:
    crowd: list[list[int]] = [[]] * 2 * MAX_VALUES
    with tempfile.TemporaryFile() as file:
        outbox = Outbox(Journal(file.fileno()))
        outbox.emit("agent", line={"crowd": crowd})
        outbox.emit("agent", line={"text": "[x, " * MAX_VALUES})
        first, last = outbox.read(0, 1)
        assert json.loads(first)["code"] == "line_too_long"
        assert json.loads(outbox.read(last, 1)[0])["k"] == "agent"
    with pytest.raises(frames.FrameError):
        frames.decode(frames.encode({"k": "agent", "line": {"crowd": crowd}}))
