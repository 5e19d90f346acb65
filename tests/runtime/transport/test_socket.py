"""Commands, joins and their order over Socket.IO, with the real client."""

import asyncio
from typing import Any

import pytest
import socketio
from socketio.exceptions import ConnectionError as Refused

from tests.runtime.transport.world import BERT, FarLog, Viewer, World, complete, delta, start, world
from tests.waiting import eventually


async def join(viewer: Viewer, session: str, position: str | None = None) -> dict[str, Any]:
    """Join, and note the moment of the ack among what was heard."""
    acked: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def on_ack(answer: dict[str, Any]) -> None:
        viewer.heard.append(("ack", answer))
        acked.set_result(answer)

    payload = {"sessionId": session} | ({"position": position} if position else {})
    await viewer.client.emit("session:join", payload, callback=on_ack)
    return await asyncio.wait_for(acked, 20)


async def chatter(w: World, session: str, blocks: int) -> None:
    """Events as fast as the log takes them, the loop's other work let in between."""
    for number in range(blocks):
        await w.log.append(session, [start(f"x{number}"), delta(f"x{number}", "a")])
        await asyncio.sleep(0)
        await w.log.append(session, [delta(f"x{number}", "b"), complete(f"x{number}", "ab")])


async def test_a_turn_is_seen_live_from_the_first_event_to_the_last() -> None:
    async with world() as w, w.viewer() as viewer:
        session = await w.session()
        answer = await join(viewer, session)
        assert answer["ok"] is True
        assert answer["resume"] == "snapshot"
        sent = await viewer.ask("session:send", {"sessionId": session, "content": "hi", "messageId": "m"})
        assert sent["ok"] is True
        await eventually(lambda: "turn_end" in viewer.names)
        begun, ended = viewer.names.index("turn_start"), viewer.names.index("turn_end")
        told = viewer.names[begun : ended + 1]
        assert [name for name in told if "block" in name] == ["block_start", "block_complete"] * 2
        assert viewer.seqs == list(range(1, len(viewer.seqs) + 1))
        envelope = dict(viewer.heard)["turn_end"]
        assert envelope["v"] == 1
        assert envelope["sessionId"] == session
        assert envelope["turnId"] == sent["turnId"]
        assert envelope["ts"].endswith("Z")


async def test_the_ack_comes_first_and_then_every_event_once_in_order() -> None:
    async with world() as w:
        session = await w.session()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(chatter(w, session, 300))
            for _ in range(8):
                tasks.create_task(_watch_from_anywhere(w, session, last=1200))
                await asyncio.sleep(0.01)


async def _watch_from_anywhere(w: World, session: str, last: int) -> None:
    async with w.viewer() as viewer:
        answer = await join(viewer, session)
        first = int(answer["position"].split(":")[1]) + 1
        await eventually(lambda: viewer.seqs[-1:] == [last] or first > last, within=50)
        assert viewer.names[0] == "ack"
        assert viewer.seqs == list(range(first, last + 1))


async def test_joining_again_and_again_under_load_misses_nothing_and_repeats_nothing() -> None:
    async with world() as w, w.viewer() as viewer:
        session = await w.session()
        first = await join(viewer, session)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(chatter(w, session, 200))
            for _ in range(20):
                here = max([0, *viewer.seqs])
                epoch = first["position"].split(":")[0]
                answer = await join(viewer, session, f"{epoch}:{here}")
                assert answer["resume"] == "replay"
        await eventually(lambda: viewer.seqs[-1:] == [800], within=10)
        known = 0
        for name, data in viewer.heard:
            if name == "ack":
                known = int(data["position"].split(":")[1])
            else:
                assert data["seq"] == known + 1
                known += 1


async def test_a_replay_leaves_out_the_typing_of_finished_blocks() -> None:
    async with world() as w, w.viewer() as viewer:
        session = await w.session()
        epoch = (await join(viewer, session))["position"].split(":")[0]
        await w.log.append(session, [start("a"), delta("a", "1"), delta("a", "2"), complete("a", "12")])
        await w.log.append(session, [start("b"), delta("b", "3"), delta("b", "4")])
        answer = await join(viewer, session, f"{epoch}:0")
        assert answer["position"] == f"{epoch}:7"
        told = [(event["type"], event["seq"]) for event in answer["events"]]
        assert told == [("block_start", 1), ("block_complete", 4), ("block_start", 5), ("text_delta", 7)]
        assert answer["events"][-1]["delta"] == "34"


@pytest.mark.parametrize("position", ["nonsense", "otherepoch:3", "x" * 150, "a:999999999999999999"])
async def test_a_position_that_cannot_be_used_gives_a_snapshot(position: str) -> None:
    async with world() as w, w.viewer() as viewer:
        answer = await join(viewer, await w.session(), position)
        assert answer["resume"] == "snapshot"
        assert answer["blocks"] == []
        assert answer["hasMore"] is False


async def test_a_bare_string_joins_and_leaves() -> None:
    async with world() as w, w.viewer() as viewer:
        session = await w.session()
        assert (await viewer.ask("session:join", session))["resume"] == "snapshot"
        await w.log.append(session, [start("a")])
        await eventually(lambda: viewer.seqs == [1])
        assert await viewer.ask("session:leave", session) == {"ok": True}
        await w.log.append(session, [start("b")])
        assert await viewer.ask("session:leave", {"sessionId": session}) == {"ok": True}
        assert viewer.seqs == [1]


async def test_a_viewer_hears_the_sessions_it_joined_and_no_other() -> None:
    async with world() as w, w.viewer() as one, w.viewer() as other:
        mine, yours = await w.session(), await w.session()
        await join(one, mine)
        await join(other, yours)
        await w.log.append(mine, [start("mine")])
        await w.log.append(yours, [start("yours")])
        await eventually(lambda: one.seqs and other.seqs)
        assert [data["sessionId"] for name, data in one.heard if name != "ack"] == [mine]
        assert [data["sessionId"] for name, data in other.heard if name != "ack"] == [yours]


async def test_a_log_that_ran_away_shows_as_a_hole_and_the_client_joins_again() -> None:
    async with world(log=FarLog(max_bytes_per_session=2000)) as w, w.viewer() as viewer:
        session = await w.session()
        await join(viewer, session)
        await w.log.append(session, [delta("a", "x" * 100) for _ in range(100)])
        await eventually(lambda: 100 in viewer.seqs)
        assert viewer.seqs[0] > 1
        answer = await join(viewer, session, f"{viewer.heard[0][1]['position'].split(':')[0]}:0")
        assert answer["resume"] == "snapshot"


async def test_the_viewers_of_a_deleted_session_hear_no_more_of_it() -> None:
    async with world() as w, w.viewer() as viewer:
        session = await w.session()
        await join(viewer, session)
        await w.call("DELETE", f"/api/sessions/{session}")
        answer = await viewer.ask("session:join", session)
        assert answer["error"]["code"] == "session_not_found"
        assert answer["error"]["status"] == 404


async def test_a_send_is_acknowledged_once_however_often_it_is_sent() -> None:
    async with world() as w, w.viewer() as one, w.viewer() as other:
        session = await w.session()
        message = {"sessionId": session, "content": [{"type": "text", "text": "hi"}], "messageId": "m1"}
        answers = await asyncio.gather(*(v.ask("session:send", message) for v in (one, other, one)))
        assert len({answer["turnId"] for answer in answers}) == 1
        assert sorted(answer["duplicate"] for answer in answers) == [False, True, True]


async def test_a_busy_session_rejects_where_asked_to_and_can_be_interrupted() -> None:
    async with world() as w, w.viewer() as viewer:
        w.sandboxes.on_message = lambda runner, turn: None
        session = await w.session()
        await join(viewer, session)
        send = {"sessionId": session, "content": "long work", "messageId": "m1"}
        turn = (await viewer.ask("session:send", send))["turnId"]
        await eventually(lambda: "turn_start" in viewer.names)
        refused = await viewer.ask("session:send", send | {"messageId": "m2", "whenBusy": "reject"})
        assert refused["error"]["code"] == "session_busy"
        answer = await viewer.ask("session:interrupt", {"sessionId": session, "turnId": turn})
        assert answer == {"ok": True, "interrupted": True}
        await eventually(lambda: "turn_end" in viewer.names)
        again = await viewer.ask("session:interrupt", {"sessionId": session})
        assert again == {"ok": True, "interrupted": False}


async def test_watching_tells_of_ones_own_sessions_and_of_no_others() -> None:
    async with world() as w, w.viewer() as viewer:
        known = await w.session()
        page = await viewer.ask("sessions:watch", {"limit": 10})
        assert [session["sessionId"] for session in page["sessions"]] == [known]
        await w.session(BERT)
        made = await w.session(name="new")
        await w.call("PATCH", f"/api/sessions/{known}", {"name": "renamed"})
        await w.call("DELETE", f"/api/sessions/{made}")
        await eventually(lambda: "session_deleted" in viewer.names and "session_changed" in viewer.names)
        assert {data["sessionId"] for _, data in viewer.heard} == {known, made}
        changed = [data for name, data in viewer.heard if name == "session_changed"]
        assert changed[-1]["session"]["name"] == "renamed"

        assert await viewer.ask("sessions:unwatch") == {"ok": True}
        before = len(viewer.heard)
        await w.session()
        assert await viewer.ask("sessions:unwatch") == {"ok": True}
        assert len(viewer.heard) == before


async def test_many_changes_of_a_session_are_told_as_few() -> None:
    async with world() as w, w.viewer() as viewer:
        await viewer.ask("sessions:watch")
        session = await w.session()
        for number in range(30):
            await w.call("PATCH", f"/api/sessions/{session}", {"name": f"name {number}"})
        await eventually(lambda: viewer.heard and viewer.heard[-1][1]["session"]["name"] == "name 29")
        assert len(viewer.heard) < 15


async def test_long_polling_does_the_same() -> None:
    async with world() as w, w.viewer(transports=["polling"]) as viewer:
        session = await w.session()
        await join(viewer, session)
        long = "x" * 300_000
        answers = await asyncio.gather(
            *(
                viewer.ask("session:send", {"sessionId": session, "content": long, "messageId": f"m{n}"})
                for n in range(3)
            )
        )
        assert all(answer["ok"] for answer in answers)
        await eventually(lambda: viewer.names.count("turn_end") == 3, within=10)
        assert viewer.seqs == list(range(1, len(viewer.seqs) + 1))


async def test_a_connection_that_grows_from_polling_to_websocket_loses_nothing() -> None:
    async with world() as w, w.viewer(transports=["polling", "websocket"]) as viewer:
        session = await w.session()
        await join(viewer, session)
        await chatter(w, session, 50)
        await eventually(lambda: viewer.seqs[-1:] == [200])
        assert viewer.client.transport() == "websocket"
        assert viewer.seqs == list(range(1, 201))


async def test_a_server_that_closes_lets_its_clients_come_back_by_themselves() -> None:
    reasons: list[str] = []
    async with world() as w, w.viewer() as viewer:
        viewer.client.on("disconnect", reasons.append)
        await w.close()
        await eventually(lambda: reasons)
    assert reasons[0] != "server disconnect", "after that one clients stay away"


async def test_fifty_polled_commands_at_once_all_arrive() -> None:
    async with world() as w, w.viewer(transports=["polling"]) as viewer:
        session = await w.session()
        answers = []
        for _ in range(50):
            await viewer.client.emit("session:leave", {"sessionId": session}, callback=answers.append)
        await eventually(lambda: len(answers) == 50)


@pytest.mark.parametrize("auth", [None, {"token": "wrong"}, {"token": 7}, {"token": None}, ["x"], "x", 7])
async def test_nobody_connects_without_a_token(auth: Any) -> None:
    async with world() as w:
        client = socketio.AsyncClient(reconnection=False)
        errors: list[Any] = []
        client.on("connect_error", errors.append)
        with pytest.raises(Refused):
            await client.connect(w.url, auth=auth, transports=["websocket"])
        await client.disconnect()
        assert errors[0]["data"]["code"] == "unauthenticated"
        assert errors[0]["data"]["status"] == 401
