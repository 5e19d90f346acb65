"""The log over plain HTTP: Server-Sent Events and lines of JSON."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tests.runtime.transport.world import ANNA, World, complete, delta, start, world
from tests.waiting import eventually

HEADERS = {"Authorization": f"Bearer {ANNA}"}


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str | None, str, dict[str, Any]]]:
    """(id, event, data) as a browser's EventSource would read them; comments as event `:`."""
    fields: dict[str, str] = {}
    async for line in answer.content:
        text = line.decode().removesuffix("\n")
        if text.startswith(":"):
            yield None, ":", {}
        elif text:
            name, _, value = text.partition(": ")
            fields[name] = value
        elif fields:
            yield fields.get("id"), fields["event"], json.loads(fields["data"])
            fields = {}


async def take(answer: aiohttp.ClientResponse, count: int) -> list[tuple[str | None, str, dict[str, Any]]]:
    found = []
    async with asyncio.timeout(10):
        async for event in events(answer):
            found.append(event)
            if len(found) == count:
                break
    return found


def stream(w: World, session: str, query: str = "", **headers: str) -> Any:
    return w.http.get(f"{w.url}/api/sessions/{session}/events{query}", headers=HEADERS | headers)


async def test_a_stream_begins_with_a_snapshot_and_goes_on_live() -> None:
    async with world() as w:
        session = await w.session()
        async with stream(w, session) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            assert answer.headers["Cache-Control"] == "no-store"
            [(place, name, data)] = await take(answer, 1)
            assert name == "snapshot"
            assert data["position"] == place
            assert data["session"]["sessionId"] == session
            await w.log.append(session, [start("a"), delta("a", "line\nbreak\r\u2028"), complete("a", "x")])
            live = await take(answer, 3)
            assert live[-1][1] == "block_complete"
            assert live[-1][0] == f"{live[-1][2]['epoch']}:{live[-1][2]['seq']}"


async def test_a_stream_resumes_after_the_event_it_names() -> None:
    async with world() as w:
        session = await w.session()
        await w.log.append(session, [start("a"), delta("a", "1"), delta("a", "2"), delta("a", "3")])
        epoch = (await w.log.head(session)).epoch
        for query, headers in ((f"?after={epoch}:2", {}), ("", {"Last-Event-ID": f"{epoch}:2"})):
            async with stream(w, session, query, **headers) as answer:
                found = await take(answer, 2)
                assert [data["seq"] for _, _, data in found] == [3, 4]


async def test_a_place_that_is_no_more_gives_a_snapshot() -> None:
    async with world() as w:
        session = await w.session()
        for place in ("other:1", "nonsense", "a:99999999999"):
            async with stream(w, session, **{"Last-Event-ID": place}) as answer:
                assert (await take(answer, 1))[0][1] == "snapshot"


async def test_a_silent_stream_gives_signs_of_life() -> None:
    async with world(heartbeat_s=0.05) as w, stream(w, await w.session()) as answer:
        assert [name for _, name, _ in await take(answer, 3)] == ["snapshot", ":", ":"]


async def test_the_stream_of_a_deleted_session_says_so_and_ends() -> None:
    async with world() as w:
        session = await w.session()
        async with stream(w, session) as answer:
            await take(answer, 1)
            await w.call("DELETE", f"/api/sessions/{session}")
            [(_, name, data)] = await take(answer, 2)
            assert (name, data["code"]) == ("error", "session_not_found")


async def test_a_reader_that_goes_away_is_let_go_of() -> None:
    async with world(heartbeat_s=0.02) as w:
        session = await w.session()
        async with stream(w, session) as answer:
            await take(answer, 1)
            assert b"agent_runtime_event_streams 1.0" in (await w.call("GET", "/metrics"))[1]

        async def open_streams() -> bytes:
            return (await w.call("GET", "/metrics"))[1]

        async with asyncio.timeout(20):
            while b"agent_runtime_event_streams 0.0" not in await open_streams():
                pass


async def test_closing_the_server_ends_streams_at_once() -> None:
    async with world(ends_within_s=600) as w:  # whoever waits for the stream waits longer than a test may
        answer = await stream(w, await w.session())
        await take(answer, 1)
    answer.close()


async def test_a_message_may_be_answered_with_its_turns_events() -> None:
    async with world() as w:
        session = await w.session()
        path = f"{w.url}/api/sessions/{session}/messages"
        async with w.http.post(
            path, json={"content": "hi"}, headers=HEADERS | {"Accept": "application/x-ndjson"}
        ) as answer:
            assert (answer.status, answer.content_type) == (200, "application/x-ndjson")
            lines = [json.loads(line) for line in (await answer.read()).splitlines()]
        assert lines[0]["type"] == "turn_start"
        assert lines[-1]["type"] == "turn_end"
        assert len({line["turnId"] for line in lines}) == 1

        async with w.http.post(
            path, json={"content": "hi"}, headers=HEADERS | {"Accept": "text/event-stream"}
        ) as answer:
            told = [event async for event in events(answer)]
        assert (told[0][1], told[-1][1]) == ("turn_start", "turn_end")


async def test_a_queued_message_hears_its_own_turn_and_no_other() -> None:
    async with world() as w:
        session = await w.session()
        turns: list[str] = []
        w.sandboxes.on_message = lambda runner, turn: turns.append(turn)
        path = f"{w.url}/api/sessions/{session}/messages"
        await w.call("POST", f"/api/sessions/{session}/messages", {"content": "first"})
        await eventually(lambda: turns)
        headers = HEADERS | {"Accept": "application/x-ndjson"}
        async with w.http.post(path, json={"content": "second"}, headers=headers) as answer:
            w.sandboxes.runners[0].rest()
            await eventually(lambda: len(turns) == 2)
            w.sandboxes.runners[0].rest()
            lines = [json.loads(line) for line in (await answer.read()).splitlines()]
        assert {line["turnId"] for line in lines} == {turns[1]}


async def test_a_message_sent_again_gets_the_same_turn_again() -> None:
    async with world() as w:
        session = await w.session()
        path = f"{w.url}/api/sessions/{session}/messages"
        headers = HEADERS | {"Accept": "application/x-ndjson"}
        told = []
        for _ in range(2):
            async with w.http.post(path, json={"content": "hi", "messageId": "m"}, headers=headers) as answer:
                told.append(await answer.read())
        assert told[0] == told[1]

        await w.log.drop(session)
        async with w.http.post(path, json={"content": "hi", "messageId": "m"}, headers=headers) as answer:
            assert answer.status == 202
            assert (await answer.json())["duplicate"] is True


async def test_leaving_a_stream_stops_no_turn() -> None:
    async with world() as w:
        session = await w.session()
        turns: list[str] = []
        w.sandboxes.on_message = lambda runner, turn: turns.append(turn)
        path = f"{w.url}/api/sessions/{session}/messages"
        async with w.http.post(
            path, json={"content": "x"}, headers=HEADERS | {"Accept": "text/event-stream"}
        ):
            await eventually(lambda: turns)
        w.sandboxes.runners[0].rest()
        async with stream(w, session) as answer:
            async for _, name, data in events(answer):
                if name == "turn_end" or (
                    name == "snapshot" and not data["session"]["runtime"].get("activeTurnId")
                ):
                    break
        _, ledger, _ = await w.call("GET", f"/api/sessions/{session}/turns")
        assert ledger["turns"][0]["status"] == "completed"
