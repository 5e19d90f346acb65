"""Several clients at once: what one does takes nothing from another, and nobody is told too much."""

from agent_runtime.records import Phase
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.faults import FaultyPersistence
from tests.runtime.transport.world import start, world
from tests.waiting import eventually


async def test_leaving_on_one_connection_leaves_the_others_where_they_are() -> None:
    async with world() as w, w.viewer() as one, w.viewer() as same_person:
        session = await w.session()
        for viewer in (one, same_person):
            assert (await viewer.ask("session:join", session))["ok"]
        assert (await one.ask("session:leave", session))["ok"]
        await w.log.append(session, [start("a")])
        await eventually(lambda: same_person.seqs == [1])
        assert (await one.ask("sessions:unwatch"))["ok"]
        assert one.seqs == []


async def test_a_connection_that_ends_stops_no_turn() -> None:
    async with world() as w:
        w.sandboxes.on_message = lambda runner, turn: None
        session = await w.session()
        async with w.viewer() as viewer:
            await viewer.ask("session:join", session)
            await viewer.ask("session:send", {"sessionId": session, "content": "work", "messageId": "m"})
            await eventually(lambda: "turn_start" in viewer.names)
        _, told, _ = await w.call("GET", f"/api/sessions/{session}")
        assert told["session"]["runtime"]["phase"] == Phase.RUNNING
        async with w.viewer() as viewer:
            await viewer.ask("session:join", session)
            w.sandboxes.runners[0].rest()
            await eventually(lambda: "turn_end" in viewer.names)
            (turn,) = (await w.call("GET", f"/api/sessions/{session}/turns"))[1]["turns"]
            assert turn["status"] == "completed"


async def test_who_watches_gets_a_page_and_then_single_sessions_never_the_list_again() -> None:
    async with world() as w, w.viewer() as viewer:
        made = [await w.session() for _ in range(30)]
        page = await viewer.ask("sessions:watch", {"limit": 10})
        assert len(page["sessions"]) == 10
        assert page["nextCursor"]
        await w.call("GET", f"/api/sessions/{made[0]}")
        await viewer.ask("session:join", made[0])
        await w.call("PATCH", f"/api/sessions/{made[1]}", {"name": "renamed"})
        await eventually(lambda: any(data["sessionId"] == made[1] for _, data in viewer.heard))
        told = [data for _, data in viewer.heard]
        assert all(data["sessionId"] in made and "sessions" not in data for data in told)
        assert sum(data["sessionId"] == made[0] for data in told) <= 3


async def test_what_is_no_event_is_told_to_nobody() -> None:
    """An agent prints much that is its own affair; viewers hear the types of the contract and nothing raw."""
    async with world() as w, w.viewer() as viewer:
        session = await w.session(message="hello")
        await viewer.ask("session:join", session)
        await viewer.ask("session:send", {"sessionId": session, "content": "again", "messageId": "m"})
        await eventually(lambda: viewer.names.count("turn_end") >= 1)
        known = {"session_status", "turn_start", "turn_end", "block_start", "block_complete", "text_delta"}
        assert set(viewer.names) <= known | {"queue_changed", "metadata_update"}
        assert all(data["type"] == name for name, data in viewer.heard)


async def test_while_the_store_does_not_answer_everybody_is_told_so_and_life_goes_on_afterwards() -> None:
    store = FaultyPersistence(MemoryPersistence())
    async with world(persistence=store) as w:
        session = await w.session()
        message = {"content": "hello", "messageId": "m"}
        store.down = True
        status, refused, _ = await w.call("POST", f"/api/sessions/{session}/messages", message)
        assert (status, refused["code"], refused["retryable"]) == (503, "persistence_unavailable", True)
        status, ready, _ = await w.call("GET", "/ready", token=None)
        assert (status, ready["ok"]) == (503, False)
        assert ready["parts"]["persistence"]["ok"] is False
        assert (await w.call("GET", "/health", token=None))[0] == 200

        store.down = False
        assert (await w.call("GET", "/ready", token=None))[0] == 200
        status, taken, _ = await w.call("POST", f"/api/sessions/{session}/messages", message)
        assert (status, taken["duplicate"]) == (202, False)
