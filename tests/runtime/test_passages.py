"""Connections into a sandbox whose runner is of an earlier version, broken, or hostile."""

import asyncio
import base64
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from agent_runtime import passages
from agent_runtime.errors import RateLimited, RuntimeFault, SandboxFault
from agent_runtime.passages import Passages
from agent_runtime.ports import ByteTaker, Sandbox
from agent_runtime.records import SandboxRef, SandboxSnapshot
from agent_runtime_sandbox import frames

OPENED = frames.encode({"k": "opened"})


class Talker:
    """A connection that says what it was told to, and then nothing, or ends."""

    def __init__(self, said: Sequence[bytes], *, ends: bool) -> None:
        self.heard: list[bytes] = []
        self.closed = asyncio.Event()
        self._said = list(said)
        self._ends = ends

    async def receive(self, take: ByteTaker | None = None) -> bytes:
        if self._said:
            return self._said.pop(0)
        if not self._ends:
            await self.closed.wait()
        return b""

    async def send(self, data: bytes) -> None:
        if self.closed.is_set():
            raise SandboxFault("The connection broke.")
        self.heard.append(data)

    async def close(self) -> None:
        self.closed.set()


class TalkingSandbox:
    """A sandbox of which only the connections matter."""

    ref = SandboxRef(sandbox_id="sb-1", provider="talker", isolation="none", started_at=datetime.now(UTC))
    expires_at = None

    def __init__(self, *said: bytes, ends: bool = False, lives: bool = True) -> None:
        self.channels: list[Talker] = []
        self._said = said
        self._ends = ends
        self._lives = lives

    async def connect(self) -> Talker:
        self.channels.append(Talker(self._said, ends=self._ends))
        return self.channels[-1]

    async def alive(self) -> bool:
        return self._lives

    async def assign(self, session_id: str) -> None:
        return None

    async def snapshot(self) -> SandboxSnapshot:
        raise SandboxFault("None.", code="unsupported")

    async def stop(self, grace_s: float = 0.0) -> None:
        return None


async def refusal(sandbox: Sandbox) -> RuntimeFault:
    """What opening a port comes to."""
    with pytest.raises(RuntimeFault) as raised:
        await Passages(sandbox).port(8000)
    return raised.value


async def test_a_runner_of_an_earlier_version_hangs_up_and_that_is_unsupported() -> None:
    old = TalkingSandbox(ends=True)
    assert (await refusal(old)).code == "unsupported"
    assert old.channels[0].closed.is_set()
    assert (await refusal(TalkingSandbox(ends=True, lives=False))).code == "sandbox_lost"


async def test_a_runner_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "OPEN_WITHIN_S", 0.05)
    silent = TalkingSandbox()
    assert (await refusal(silent)).code == "sandbox_timeout"
    assert silent.channels[0].closed.is_set()


@pytest.mark.parametrize(
    "line",
    [
        b"rubbish\n",
        b"[]\n",
        b'{"k": "hello"}\n',
        b'{"k": "refused"}\n',
        b'{"k": "refused", "code": [], "message": "x"}\n',
        b'{"k": "refused", "code": "x", "message": 7}\n',
        b"x" * 100_000,
    ],
)
async def test_a_runner_that_says_nonsense_is_left(line: bytes) -> None:
    sandbox = TalkingSandbox(line)
    assert (await refusal(sandbox)).code == "sandbox_lost"
    assert sandbox.channels[0].closed.is_set()


async def test_its_no_has_our_codes_and_a_bounded_part_of_its_words() -> None:
    for code, shown, kind in (
        ("port_closed", "port_closed", SandboxFault),
        ("too_many_connections", "too_many_connections", RateLimited),
        ("internal", "runner_refused", SandboxFault),
    ):
        said = frames.encode({"k": "refused", "code": code, "message": "\ud800" + "x" * 50_000})
        fault = await refusal(TalkingSandbox(said))
        assert (fault.code, type(fault)) == (shown, kind)
        assert len(fault.detail) < 300
        fault.detail.encode()


async def test_bytes_that_come_with_the_answer_are_not_lost() -> None:
    sandbox = TalkingSandbox(OPENED[:4], OPENED[4:] + b"first", b"second")
    passage = await Passages(sandbox).port(8000)
    assert frames.decode(sandbox.channels[0].heard[0]) == {"k": "port", "port": 8000}
    assert [await passage.receive(), await passage.receive()] == [b"first", b"second"]


async def test_what_a_terminal_shows_is_checked() -> None:
    shown = base64.b64encode(b"\xff\x00").decode()
    for said, code in (
        (b'{"k": "data", "data": "***"}\n', "sandbox_lost"),
        (b'{"k": "data"}\n', "sandbox_lost"),
        (b"x" * 2_000_000, "sandbox_lost"),
        (b"[]\n", "sandbox_lost"),
    ):
        terminal = await Passages(TalkingSandbox(OPENED, said)).terminal(24, 80)
        with pytest.raises(SandboxFault) as raised:
            await terminal.receive()
        assert raised.value.code == code
    for said, code_of_shell in (
        (b'{"k": "exit", "code": 3}\n', 3),
        (b'{"k": "exit", "code": "3"}\n', None),
        (b'{"k": "exit", "code": 1e99}\n', None),
        (b'{"k": "exit", "code": true}\n', None),
    ):
        lines = frames.encode({"k": "data", "data": shown}) + b'{"k": "whatever"}\n' + said
        terminal = await Passages(TalkingSandbox(OPENED + lines)).terminal(24, 80)
        assert [await terminal.receive(), await terminal.receive()] == [b"\xff\x00", b""]
        assert terminal.code == code_of_shell


async def test_what_is_open_and_used_is_in_use_and_what_is_forgotten_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passages, "IN_USE_S", 0.2)
    all_of_it = Passages(TalkingSandbox(OPENED))
    passage = await all_of_it.port(8000)
    assert all_of_it.quiet_s() == 0.0
    async with asyncio.timeout(20):
        while not all_of_it.quiet_s():
            await asyncio.sleep(0.01)
    await passage.send(b"x")
    assert all_of_it.quiet_s() == 0.0
    await passage.close()
    async with asyncio.timeout(20):
        while not all_of_it.quiet_s():
            await asyncio.sleep(0.01)


async def test_a_cut_ends_all_of_them_and_no_more_are_opened() -> None:
    sandbox = TalkingSandbox(OPENED)
    all_of_it = Passages(sandbox)
    await all_of_it.port(8000)
    await all_of_it.terminal(24, 80)
    await all_of_it.cut()
    assert all(channel.closed.is_set() for channel in sandbox.channels)
    with pytest.raises(SandboxFault):
        await all_of_it.port(8000)
    assert sandbox.channels[-1].closed.is_set()
