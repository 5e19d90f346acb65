"""A profile that asks for packages, from the viewer's side: a wait that is told, a failure that is named."""

from pathlib import Path

import pytest

from agent_runtime.testing.script import Call, Say
from tests.adapters.sandboxes.registries import make_wheel, use_wheels_of
from tests.stories.serving import serving
from tests.stories.viewer import new_session, viewing

USE = [[Call("Bash", {"command": "tinypy-greet", "description": "greet"})], [Say("It greeted.")]]


async def test_a_package_that_cannot_be_had_fails_the_turn_by_its_name_and_the_next_profile_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "wheels", "tinypy", "1.0")
    use_wheels_of(tmp_path / "wheels", monkeypatch)
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    greeter = profiles / "greeter.yaml"
    greeter.write_text("sandbox: {dependencies: {pip: ['tinypy==9']}}\n")
    async with serving(profiles=profiles, scripts={"use": USE}) as server:
        session_id = await new_session(server, agentProfileRef="greeter")
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:use]]", "one")
            (failed,) = await viewer.turns_ended(1)
            greeter.write_text("sandbox: {dependencies: {pip: ['tinypy==1.0']}}\n")
            await viewer.send(session_id, "[[script:use]] again", "two")
            _, done = await viewer.turns_ended(2)

        told = {event["runtime"].get("statusMessage") for event in viewer.of("session_status")}
        assert "Starting the sandbox with its packages" in told
        assert failed["status"] == "failed"
        assert failed["error"]["code"] == "dependencies_failed"
        assert failed["error"]["message"] == "pip: there is no wheel of tinypy==9 for this Python."
        assert failed["error"]["retryable"] is False
        assert done["status"] == "completed"
        assert "hello from python" in str(viewer.blocks("tool_result"))
