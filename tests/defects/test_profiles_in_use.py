"""What a profile may do: nothing outside of a workspace, and nothing to a sandbox that runs."""

import pytest

from agent_runtime.creation import NewSession
from agent_runtime.errors import InvalidRequest
from agent_runtime.profile import FileRules
from agent_runtime.testing.scripted_runner import echo
from tests.runtime.world import ANNA, PROFILE, world

OWN = PROFILE.model_copy(update={"profile_id": "own"})


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../x", "", "a\0b"])
async def test_a_profile_whose_files_lie_outside_makes_no_session(path: str) -> None:
    async with world(echo) as it:
        await it.store.inner.save_profile(OWN.model_copy(update={"files": {path: "x"}}))
        with pytest.raises(InvalidRequest) as refused:
            await it.manager.create_session(ANNA, NewSession("own", message="hello"))
        assert refused.value.code == "invalid_path"
        assert await it.manager.list_sessions(ANNA, limit=5, cursor=None) == ((), None)


async def test_a_changed_profile_counts_from_the_next_sandbox_on() -> None:
    async with world(echo) as it:
        await it.store.inner.save_profile(OWN)
        session, _ = await it.manager.create_session(ANNA, NewSession("own", message="one"))
        await it.ended(session.session_id, 1)
        rules = FileRules(ignore=("later",))
        await it.store.inner.save_profile(OWN.model_copy(update={"file_rules": rules}))
        await it.send(session.session_id, "two")
        await it.ended(session.session_id, 2)
        await it.manager.stop_session(ANNA, session.session_id)
        await it.send(session.session_id, "three")
        await it.ended(session.session_id, 3)
        before, after = (sandbox.spec.file_rules for sandbox in it.sandboxes.made)
        assert "later" not in before.ignore
        assert after.ignore == ("later",)
