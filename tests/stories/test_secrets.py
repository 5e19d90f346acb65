"""Secrets are where they were asked for, and nowhere else: planted, used, and searched for everywhere."""

import asyncio
import base64
import json
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.testing.script import Call, Fail, Say
from tests.seen_from_outside import files_of
from tests.stories.process import TOKEN, House, Life, children, house
from tests.stories.serving import serving
from tests.stories.test_hostile_sandbox import bash, turn
from tests.stories.viewer import Viewer, new_session, viewing

SEARCH = (Path(__file__).with_name("attacks") / "search.py").read_text()
SCRIPTS = {
    "print": bash('echo "it is $SHOWN_TOKEN and $PLAIN"; env | grep -c _TOKEN; false'),
    "search": bash("python3 search.py"),
    "refused": [[Fail(401, "authentication_error", "invalid x-api-key")]],
    "work": [
        [Call("Bash", {"command": "touch working; timeout 40 tail -f /dev/null; true"})],
        [Say("Done.")],
    ],
    "die": bash("kill -9 $CLAUDE_PID"),
}
PROFILE = {
    "sandbox": {"secrets": ["SHOWN_TOKEN", "QUIET_TOKEN"], "env": {"PLAIN": "plain-value"}},
    "files": {"search.py": SEARCH},
}
PAGES = ("", "/blocks", "/turns", "/requests", "/files", "/files/working", "/export", "/nothing", "/archive")


class Planted:
    """One random value for each place in which a secret is planted."""

    def __init__(self) -> None:
        self.key, self.other, self.shown, self.quiet = (f"planted-{secrets.token_hex(12)}" for _ in range(4))

    @property
    def environment(self) -> dict[str, str]:
        """Of the runtime."""
        return {
            "ANTHROPIC_API_KEY": self.key,
            "DATABASE_PASSWORD": self.other,
            "SHOWN_TOKEN": self.shown,
            "QUIET_TOKEN": self.quiet,
        }

    def in_(self, content: bytes | str) -> set[str]:
        """The names of those that stand in some text, as they are or encoded."""
        data = content.encode(errors="replace") if isinstance(content, str) else content
        named = {"key": self.key, "other": self.other, "shown": self.shown, "quiet": self.quiet}
        return {name for name, value in named.items() if any(form in data for form in _forms(value))}


def _forms(value: str) -> Iterator[bytes]:
    plain = value.encode()
    yield plain
    yield plain.hex().encode()
    for shift in range(3):  # wherever in a longer text it stood that was encoded
        yield base64.b64encode(bytes(shift) + plain)[4:-4]


async def test_a_secret_is_nowhere_but_where_a_profile_asked_for_it(tmp_path: Path) -> None:
    planted = Planted()
    settings: dict[str, Any] = {"secrets": ["SHOWN_TOKEN", "QUIET_TOKEN"], "orphanTimeoutS": 60}
    async with house(tmp_path, scripts=SCRIPTS, environment=planted.environment, **settings) as it:
        _write_profiles(tmp_path)
        wire: list[str] = []
        async with it.life() as life:
            session_id = await new_session(life, agentProfileRef="asking")
            async with viewing(life, session_id) as viewer:
                await turn(viewer, session_id, "print")
                await turn(viewer, session_id, "search")
                await turn(viewer, session_id, "refused")
                await turn(viewer, session_id, "die")
                await _at_work(it, viewer, session_id)
                _search_processes(it, session_id, planted)
                _search_sandbox(it.folder(session_id), planted)
                wire += [json.dumps(viewer.events), await _all_pages(life, session_id)]
                await life.end(signal.SIGKILL)
        async with it.life() as life:
            await _failing_wakes(life, wire)
            wire.append(await _all_pages(life, session_id))

        _where_it_was_asked_for(viewer, planted)
        assert planted.in_("".join(wire)) == {"shown"}
        assert planted.in_(json.dumps([asked.body for asked in it.model.requests])) == {"shown"}
        assert {asked.headers["x-api-key"] for asked in it.model.requests} == {planted.key}
        _search_data(tmp_path, planted)


async def test_nothing_is_said_in_the_log_however_much_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Within one process, whose log says all that there is to say; errors on the way."""
    planted = Planted()
    for name, value in planted.environment.items():
        monkeypatch.setenv(name, value)
    _write_profiles(tmp_path)
    named = ("SHOWN_TOKEN", "QUIET_TOKEN")
    async with serving(data=tmp_path, scripts=SCRIPTS, secrets=named) as server:
        session_id = await new_session(server, agentProfileRef="asking")
        async with viewing(server, session_id) as viewer:
            for script in ("print", "refused", "die", "print"):
                await turn(viewer, session_id, script)
    said = capfd.readouterr()
    assert "[debug" in said.out
    assert planted.in_(said.out + said.err) == set()


async def test_without_isolation_the_agent_alone_has_them_as_well(tmp_path: Path) -> None:
    planted = Planted()
    settings: dict[str, Any] = {"secrets": ["SHOWN_TOKEN", "QUIET_TOKEN"], "sandbox": "unsafe-subprocess"}
    async with house(tmp_path, scripts=SCRIPTS, environment=planted.environment, **settings) as it:
        _write_profiles(tmp_path)
        async with it.life() as life:
            session_id = await new_session(life, agentProfileRef="asking")
            async with viewing(life, session_id) as viewer:
                await turn(viewer, session_id, "print")
                runner = it.sandbox(session_id).keeper
                assert runner is not None
                (agent,) = children(runner.pid)
                assert planted.in_(_read(agent, "environ")) == {"shown", "quiet"}
                assert planted.in_(_read(runner.pid, "environ") + _read(runner.pid, "cmdline")) == set()
                assert planted.shown in json.dumps(viewer.events)
                await _end(life, session_id)


async def test_names_that_are_the_runtimes_own_cannot_be_set_by_a_profile(tmp_path: Path) -> None:
    """Each is refused when the profile is used, by its name."""
    async with house(tmp_path) as it, it.life() as life:
        for name in ("PATH", "LD_PRELOAD", "ANTHROPIC_BASE_URL", "CLAUDE_CONFIG_DIR", "https_proxy"):
            (tmp_path / "profiles" / "grasping.yaml").write_text(
                json.dumps({"sandbox": {"env": {name: "x"}}})
            )
            session_id = await new_session(life, agentProfileRef="grasping")
            async with viewing(life, session_id) as viewer:
                error = (await turn(viewer, session_id, "text"))["error"]
            assert (error["code"], error["retryable"]) == ("reserved_variable", False)
            assert name in error["message"]


async def _end(life: Life, session_id: str) -> None:
    async with life.http.post(f"/api/sessions/{session_id}/stop", json={}) as answer:
        assert answer.status == 200


def _write_profiles(data: Path) -> None:
    folder = data / "profiles"
    folder.mkdir()
    wanted = {"asking": PROFILE, "denied": {"sandbox": {"secrets": ["DATABASE_PASSWORD"]}}}
    for name, profile in wanted.items():
        (folder / f"{name}.yaml").write_text(json.dumps(profile))


async def _at_work(it: House, viewer: Viewer, session_id: str) -> None:
    """Begin a turn whose tool goes on and on."""
    await viewer.send(session_id, "[[script:work]]", "work")
    await viewer.until(lambda event: event.get("file", {}).get("path") == "working")
    assert it.agents(session_id)


def _search_processes(it: House, session_id: str, planted: Planted) -> None:
    """The agent and its tools have what was asked for; no other process has anything, wherever it runs."""
    (agent,) = it.agents(session_id)
    assert planted.in_(_read(agent, "environ")) == {"shown", "quiet"}
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        assert not planted.in_(_read(pid, "cmdline"))
        if agent not in _line_of(pid) and not _is_server(pid):
            assert not planted.in_(_read(pid, "environ")), _read(pid, "cmdline")
    inner = it.sandbox(session_id).inner
    assert inner is not None
    assert it.runner(session_id) in children(inner.pid)


def _line_of(pid: int) -> list[int]:
    """A process and those that it descends from: asked anew for each, as tools start others meanwhile."""
    line = []
    while pid > 0:
        line.append(pid)
        *_, told = _read(pid, "stat").decode(errors="replace").rpartition(") ")
        pid = int(told.split()[1]) if told else 0
    return line


def _is_server(pid: int) -> bool:
    return b"agent-runtime\0serve\0" in _read(pid, "cmdline") or pid == os.getpid()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _search_sandbox(folder: Path, planted: Planted) -> None:
    """What a tool printed is in the agent's own record; nothing else is in any file."""
    for name in ("workspace", "home"):
        assert _in_files(files_of(folder, name), planted) <= {"shown"}


def _search_data(data: Path, planted: Planted) -> None:
    """All that is persisted, the journals, the logs."""
    kept = {"shown"}
    for path in (data / "agent-runtime.db").parent.glob("agent-runtime.db*"):
        assert planted.in_(path.read_bytes()) <= kept
    assert planted.in_((data / "errors.log").read_bytes()) == set()
    assert _in_files(data, planted) <= kept
    gateway = (data / "gateway" / "key").read_bytes()
    for path in data.rglob("*"):
        if path.is_file() and path.name not in {"key", "disk"}:
            assert gateway not in path.read_bytes()


def _in_files(folder: Path, planted: Planted) -> set[str]:
    found: set[str] = set()
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file() and not path.is_symlink() and path.name != "disk":
                found |= planted.in_(path.read_bytes())
    return found


async def _all_pages(life: Life, session_id: str) -> str:
    """Everything that can be asked for over REST, and what comes of wrong questions."""
    session = f"/api/sessions/{session_id}"
    paths = [f"{session}{page}" for page in PAGES]
    paths += ["/api/sessions", "/api/profiles", "/api/profiles/asking", "/api/openapi.json", "/api/nothing"]
    paths += ["/metrics", "/ready", "/health", "/api/sessions/nobody", "/api/sessions?limit=x"]
    told = []
    for path in paths:
        async with life.http.get(path) as answer:
            told += [str(answer.headers), (await answer.read()).decode(errors="replace")]
    async with life.http.get(f"{session}/events", headers={"Last-Event-ID": "none:0"}) as stream:
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                async for line in stream.content:
                    told.append(line.decode())
    async with life.http.post("/api/sessions", json={"agentProfileRef": "nobody", "bad": 1}) as answer:
        told.append(await answer.text())
    async with life.http.get("/api/sessions", headers={"Authorization": "Bearer wrong"}) as answer:
        told.append(await answer.text())
    assert any(planted_text in "".join(told) for planted_text in ("plain-value", "PLAIN"))
    return "".join(told)


async def _failing_wakes(life: Life, wire: list[str]) -> None:
    """A profile that asks for what it is not given."""
    session_id = await new_session(life, agentProfileRef="denied")
    async with viewing(life, session_id) as viewer:
        ended = await turn(viewer, session_id, "text")
        assert ended["error"]["code"] == "secret_unavailable"
        assert "DATABASE_PASSWORD" in ended["error"]["message"]
        wire.append(json.dumps(viewer.events))


def _where_it_was_asked_for(viewer: Viewer, planted: Planted) -> None:
    """A tool that prints its secret shows it; the search from inside found the other nowhere."""
    said = [block["output"] for block in viewer.blocks("tool_result")]
    assert f"it is {planted.shown} and plain-value" in said[0]
    assert "FOUND [[], true] END" in said[1], said[1]
    assert TOKEN not in json.dumps(viewer.events)
