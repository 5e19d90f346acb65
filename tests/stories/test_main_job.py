"""The main job, told through the whole system: real server, real sandbox, real agent binary."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

from agent_runtime.testing.script import Call, Say
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from tests.stories.serving import REAL_KEY, serving
from tests.stories.viewer import Viewer, get, new_session, viewing


async def test_a_message_wakes_a_sandbox_and_the_agents_blocks_stream_in() -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            ack = await viewer.send(session_id, "[[script:demo]]", "first")
            (turn,) = await viewer.turns_ended(1)

        assert ack["ok"]
        assert ack["turnId"] == turn["turnId"]
        assert turn["status"] == "completed"
        assert turn["usage"]["outputTokens"] > 0
        assert_orderly(viewer)
        assert viewer.blocks("thinking")
        assert {"Write", "Edit", "Bash", "Agent"} <= {tool["toolName"] for tool in viewer.blocks("tool_use")}
        (subagent,) = viewer.blocks("subagent")
        assert any(block["conversationId"] == subagent["subagentId"] for block in viewer.blocks("tool_use"))
        manifest = (await get(server, f"/api/sessions/{session_id}/files"))["files"]
        assert {"life/life.py", "life/test_life.py"} <= {file["path"] for file in manifest}


async def test_live_blocks_equal_stored_blocks_equal_the_agents_own_transcript() -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:demo]]", "first")
            await viewer.turns_ended(1)

        live = folded(viewer)
        page = await get(server, f"/api/sessions/{session_id}/blocks?limit=200")
        stored = {block["id"]: block for block in page["blocks"]}
        assert list(stored) == list(live)
        assert stored == live

        transcript = await server.runtime.config.persistence.load_transcript(session_id)
        parsed = {block.id: block.to_json() for block in ClaudeAgent().read_transcript(transcript)}
        assert parsed.keys() == live.keys()
        for block_id, block in parsed.items():
            assert essence(block) == essence(live[block_id])


async def test_two_messages_at_once_to_a_cold_session_make_one_sandbox_and_two_turns_in_order() -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as one, viewing(server, session_id) as other:
            first = await one.send(session_id, "[[script:text]] one", "a")
            second = await other.send(session_id, "[[script:text]] two", "b")
            waiting = (await get(server, f"/api/sessions/{session_id}/turns"))["turns"][-1]
            ended = await one.turns_ended(2)
            ledger = (await get(server, f"/api/sessions/{session_id}/turns"))["turns"]

        assert (waiting["status"], waiting["content"]) == ("queued", "[[script:text]] two")
        assert ledger == ended
        assert [turn["turnId"] for turn in ended] == [first["turnId"], second["turnId"]]
        assert [turn["index"] for turn in ended] == [0, 1]
        sandboxes = {
            event["runtime"]["sandbox"]["sandboxId"]
            for event in one.of("session_status")
            if "sandbox" in event["runtime"]
        }
        assert len(sandboxes) == 1
        assert len(one.of("turn_end")) == 2
        assert_orderly(one)


async def test_a_message_sent_again_starts_nothing_and_gets_the_first_answer() -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            first = await viewer.send(session_id, "[[script:text]]", "same")
            await viewer.turns_ended(1)
            again = await viewer.send(session_id, "[[script:text]]", "same")

        assert again == {"ok": True, "turnId": first["turnId"], "duplicate": True}
        assert len((await get(server, f"/api/sessions/{session_id}/turns"))["turns"]) == 1


async def test_an_interrupt_ends_the_turn_once_and_the_next_one_works() -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:slow_bash]]", "slow")
            await viewer.until(is_block("tool_use", "block_complete"))
            ack = await viewer.call("session:interrupt", {"sessionId": session_id})
            await viewer.turns_ended(1)
            await viewer.send(session_id, "[[script:text]]", "after")
            cut, next_turn = await viewer.turns_ended(2)

        assert ack == {"ok": True, "interrupted": True}
        assert cut["status"] == "cancelled"
        assert next_turn["status"] == "completed"
        assert_orderly(viewer)


async def test_after_a_stop_files_and_memory_come_back_in_a_new_sandbox() -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:bash]]", "one")
            await viewer.turns_ended(1)
            before = (await get(server, f"/api/sessions/{session_id}/files"))["files"]
            async with server.http.post(f"/api/sessions/{session_id}/stop") as response:
                stopped = await response.json()
            await viewer.send(session_id, "[[script:text]] again", "two")
            await viewer.turns_ended(2)

        assert stopped["runtime"]["phase"] == "dormant"
        assert "sandbox" not in stopped["runtime"]
        (restored,) = viewer.of("workspace_restored")
        assert restored["restoredFiles"] == len(before) > 0
        assert (await get(server, f"/api/sessions/{session_id}/files"))["files"] == before
        asked = server.model.requests[-1]
        assert "[[script:bash]]" in str(asked), "the agent still knows what was said to its forerunner"


def written(file: Path) -> bytes:
    """All that a file holds but its holes: a sandbox's disk is 8 GiB of them."""
    held, at = b"", 0
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        while at < size:
            try:
                begin = os.lseek(opened.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole from here on
                break
            at = os.lseek(opened.fileno(), begin, os.SEEK_HOLE)
            held += os.pread(opened.fileno(), at - begin, begin)
    return held


async def test_the_real_key_is_nowhere_but_at_the_model() -> None:
    search = "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'"
    look = [[Call("Bash", {"command": search, "description": "Look around"})], [Say("That is all.")]]
    async with serving(scripts={"look": look}) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:look]]", "look")
            await viewer.turns_ended(1)

        seen = str(viewer.events)
        assert "HOME=/home/agent" in seen, "the search looked at a real environment"
        assert REAL_KEY not in seen
        for file in server.data.rglob("*"):
            assert not file.is_file() or REAL_KEY.encode() not in written(file)


async def test_a_key_that_the_model_refuses_ends_the_turn_at_once_with_a_clear_error() -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:error status=401 times=99]]", "first")
            (turn,) = await viewer.turns_ended(1, within=20)

        assert turn["status"] == "failed"
        assert turn["error"]["code"] == "model_authentication_failed"
        assert not turn["error"]["retryable"]
        (error,) = viewer.blocks("error")
        assert error["code"] == "model_authentication_failed"


async def test_a_background_subagent_comes_back_in_a_turn_that_the_agent_begins_by_itself() -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:background]]", "first")
            asked, came_back = await viewer.turns_ended(2)

        assert asked["messageId"] == "first"
        assert "messageId" not in came_back
        assert [turn["status"] for turn in (asked, came_back)] == ["completed", "completed"]
        updates = [event["updates"] for event in viewer.of("block_update")]
        assert any(update.get("status") == "success" and "output" in update for update in updates)


async def test_a_viewer_that_joins_in_mid_turn_ends_with_the_same_blocks() -> None:
    async with serving() as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as first, viewing(server) as late:
            await first.send(session_id, "[[script:slow n=60]]", "slow")
            await first.until(lambda event: event["type"] == "text_delta")
            ack = await late.call("session:join", {"sessionId": session_id})
            await first.turns_ended(1)
            await late.turns_ended(1)

        assert ack["resume"] == "snapshot"
        (open_block,) = [block for block in ack["blocks"] if block["state"] == "streaming"]
        grown = open_block["content"] + "".join(event["delta"] for event in late.of("text_delta"))
        (final,) = first.blocks("assistant_text")
        assert grown == final["content"]
        epoch, seq = ack["position"].split(":")
        assert late.events[0]["seq"] == int(seq) + 1
        assert {event["epoch"] for event in late.events} == {epoch}


def is_block(kind: str, event_type: str) -> Any:
    """Fits an event of this type about a block of this kind."""
    return lambda event: event["type"] == event_type and event["block"]["type"] == kind


def assert_orderly(viewer: Viewer) -> None:
    """What holds for every stream of events (docs/wire.md, sections 4 and 5)."""
    assert all(after["seq"] == before["seq"] + 1 for before, after in pairwise(viewer.events))
    assert len({event["epoch"] for event in viewer.events}) == 1
    turn: str | None = None
    open_blocks: set[str] = set()
    for event in viewer.events:
        match event["type"]:
            case "turn_start":
                assert turn is None
                turn = event["turn"]["turnId"]
            case "turn_end":
                assert turn == event["turn"]["turnId"]
                turn = None
                assert not open_blocks
            case "block_start":
                assert turn is not None
                open_blocks.add(event["block"]["id"])
            case "block_complete":
                open_blocks.remove(event["blockId"])
            case "text_delta" | "input_delta":
                assert event["blockId"] in open_blocks
    called = {block["toolUseId"] for block in viewer.blocks("tool_use")}
    answered = [block["toolUseId"] for block in viewer.blocks("tool_result")]
    assert sorted(called) == sorted(answered)


def folded(viewer: Viewer) -> dict[str, dict[str, Any]]:
    """The blocks that a viewer ends with: starts, completions and updates, in order of appearance."""
    blocks: dict[str, dict[str, Any]] = {}
    for event in viewer.events:
        match event["type"]:
            case "block_start":
                blocks[event["block"]["id"]] = event["block"]
            case "block_complete":
                blocks[event["blockId"]] = event["block"]
            case "block_update":
                blocks[event["blockId"]] = blocks[event["blockId"]] | event["updates"]
    return blocks


def essence(block: dict[str, Any]) -> dict[str, Any]:
    """A block without what a transcript cannot know: our turn, our clock, the client's own id."""
    unknown = {"turnId", "timestamp", "durationMs", "messageId"}
    return {name: value for name, value in block.items() if name not in unknown}
