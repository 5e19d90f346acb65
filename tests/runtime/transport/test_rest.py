"""Sessions and messages over REST, told as a client lives them."""

from tests.runtime.transport.world import BERT, world
from tests.waiting import eventually


async def test_a_session_is_created_found_renamed_and_deleted() -> None:
    async with world() as w:
        status, session, headers = await w.call(
            "POST", "/api/sessions", {"agentProfileRef": "default", "name": "first", "metadata": {"a": None}}
        )
        assert status == 201
        assert headers["Location"] == f"/api/sessions/{session['sessionId']}"
        assert session["runtime"]["phase"] == "dormant"
        path = f"/api/sessions/{session['sessionId']}"

        status, renamed, _ = await w.call("PATCH", path, {"name": "second"})
        assert (status, renamed["name"], renamed["metadata"]) == (200, "second", {"a": None})
        status, found, _ = await w.call("GET", path)
        assert status == 200
        assert found["session"]["name"] == "second"
        assert found["blocks"] == []
        assert not w.sandboxes.runners, "looking starts no sandbox"

        status, body, _ = await w.call("DELETE", path)
        assert (status, body) == (204, b"")
        status, problem, headers = await w.call("GET", path)
        assert (status, problem["code"]) == (404, "session_not_found")
        assert headers["Content-Type"].startswith("application/problem+json")


async def test_a_message_is_accepted_and_its_turn_ends() -> None:
    async with world() as w:
        session = await w.session()
        path = f"/api/sessions/{session}"
        status, receipt, _ = await w.call("POST", f"{path}/messages", {"content": "hi", "messageId": "m1"})
        assert status == 202
        again = await w.call("POST", f"{path}/messages", {"content": "hi", "messageId": "m1"})
        assert again[1] == {"turnId": receipt["turnId"], "duplicate": True}

        async def ended() -> bool:
            turns = (await w.call("GET", f"{path}/turns"))[1]["turns"]
            return [turn["status"] for turn in turns] == ["completed"]

        while not await ended():
            pass
        _, page, _ = await w.call("GET", f"{path}/blocks")
        assert [block["type"] for block in page["blocks"]] == ["user_message", "assistant_text"]
        assert page["hasMore"] is False
        newest = page["blocks"][-1]
        _, older, _ = await w.call("GET", f"{path}/blocks?before={newest['id']}&limit=1")
        assert [block["content"] for block in older["blocks"]] == ["hi"]


async def test_a_session_of_another_owner_looks_absent_everywhere() -> None:
    async with world() as w:
        session = await w.session()
        path = f"/api/sessions/{session}"
        for method, tail, body in [
            ("GET", "", None),
            ("PATCH", "", {"name": "x"}),
            ("PATCH", "/options", {"model": "x"}),
            ("POST", "/stop", {}),
            ("POST", "/prewarm", {}),
            ("POST", "/sync", {}),
            ("POST", "/messages", {"content": "x"}),
            ("POST", "/interrupt", {}),
            ("GET", "/blocks", None),
            ("GET", "/turns", None),
            ("GET", "/files", None),
            ("GET", "/files/a.txt", None),
            ("GET", "/events", None),
            ("DELETE", "", None),
        ]:
            status, problem, _ = await w.call(method, path + tail, body, token=BERT)
            assert (status, problem["code"]) == (404, "session_not_found"), (method, tail)
        _, mine, _ = await w.call("GET", "/api/sessions", token=BERT)
        assert mine == {"sessions": []}
        assert (await w.call("GET", path))[0] == 200


async def test_the_same_idempotency_key_makes_one_session() -> None:
    async with world() as w:
        key = {"Idempotency-Key": "k-1"}
        body = {"agentProfileRef": "default"}
        first = await w.call("POST", "/api/sessions", body, headers=key)
        second = await w.call("POST", "/api/sessions", body, headers=key)
        assert first[0] == second[0] == 201
        assert first[1]["sessionId"] == second[1]["sessionId"]
        assert second[2]["Idempotency-Replayed"] == "true"
        assert len((await w.call("GET", "/api/sessions"))[1]["sessions"]) == 1


async def test_sessions_are_paged_newest_first() -> None:
    async with world() as w:
        made = [await w.session(name=str(number)) for number in range(5)]
        _, page, _ = await w.call("GET", "/api/sessions?limit=3")
        _, rest, _ = await w.call("GET", f"/api/sessions?limit=3&cursor={page['nextCursor']}")
        found = [session["sessionId"] for session in page["sessions"] + rest["sessions"]]
        assert sorted(found) == sorted(made)
        assert "nextCursor" not in rest


async def test_options_are_checked_by_the_agent_and_shown() -> None:
    async with world() as w:
        path = f"/api/sessions/{await w.session()}/options"
        status, session, _ = await w.call("PATCH", path, {"model": "large"})
        assert (status, session["sessionOptions"]) == (200, {"model": "large"})
        status, problem, _ = await w.call("PATCH", path, {"modle": "large"})
        assert status == 422
        assert "modle" in problem["detail"]


async def test_prewarm_stop_and_sync_answer_with_the_session() -> None:
    async with world() as w:
        path = f"/api/sessions/{await w.session()}"
        status, session, _ = await w.call("POST", f"{path}/prewarm")
        assert status == 202
        await eventually(lambda: w.sandboxes.runners)
        status, session, _ = await w.call("POST", f"{path}/sync")
        assert status == 200
        status, session, _ = await w.call("POST", f"{path}/stop")
        assert (status, session["runtime"]["phase"]) == (200, "dormant")


async def test_profiles_are_listed_and_found() -> None:
    async with world() as w:
        _, listed, _ = await w.call("GET", "/api/profiles")
        assert "default" in [profile["profileId"] for profile in listed["profiles"]]
        assert (await w.call("GET", "/api/profiles/default"))[0] == 200
        assert (await w.call("GET", "/api/profiles/none"))[1]["code"] == "profile_not_found"
