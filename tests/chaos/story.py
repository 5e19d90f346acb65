"""Runs a plan: a real runtime process in its lives, clients over a bad network, strikes at their moments.

After the time of trouble everything gets calm and all that was begun has to come to its end; `checks` then
looks at what clients hold and at the store. What the story did itself is written down as it happens
(`Deed`), so that a check can ask for the cause of an effect.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from agent_runtime_adapters.sandboxes.processes import ProcessMark, all_pids
from tests.chaos.client import Gone, Viewer
from tests.chaos.life import TOKEN
from tests.chaos.plan import Blow, Plan, Said, Strike
from tests.chaos.processes import Forks, Life
from tests.chaos.proxy import Proxy, foul

Told = dict[str, Any]

CALM_WITHIN_S = 20.0
"""From the end of all trouble until every message is answered and every viewer is where the session is."""
ORPHAN_TIMEOUT_S = 8.0
READY_WITHIN_S = 15.0


class Unwell(Exception):
    """The story did not come to its end: what was waited for, and how things stood."""


@dataclass(frozen=True)
class Deed:
    """Something that the story did to a session, which may be the cause of how a turn ended."""

    what: str
    session: int
    at: datetime


@dataclass
class Sent:
    """What became of a message at its sender: its turn, or the code it was refused with."""

    said: Said
    tries: int = 0
    turn_id: str | None = None
    refused: str | None = None
    when_busy: str = "queue"


@dataclass
class Figures:
    """What was done in the end, for the summary."""

    lives: int = 0
    blows: dict[str, int] = field(default_factory=dict)
    restarts_ms: list[float] = field(default_factory=list)
    cuts: int = 0
    refused: int = 0
    messages: int = 0
    joins: dict[str, int] = field(default_factory=dict)
    deeds: dict[str, int] = field(default_factory=dict)


class Story:
    """One run of a plan below `data`. `end_all` tells whether sandboxes are ended by us or end as orphans."""

    def __init__(self, plan: Plan, forks: Forks, proxy: Proxy, data: Path) -> None:
        self.plan = plan
        self.data = data
        self.sessions: list[str] = []
        self.viewers: list[list[Viewer]] = []
        self.sent: list[Sent] = []
        self.deeds: list[Deed] = []
        self.figures = Figures()
        self.fresh: list[Told] = []
        self.turns: list[list[Told]] = []
        self.life: Life | None = None
        self.defects: list[str] = []
        self._forks = forks
        self._proxy = proxy
        self._calm_at = 0.0
        self._expected_to_end = False

    async def run(self) -> None:
        """Raises `Unwell` or an assertion of a client; in any case no process is left."""
        self._proxy.weather = foul(f"{self.plan.seed}/socket", self.plan.socket_rate, 30_000)
        self._calm_at = time.monotonic() + READY_WITHIN_S
        try:
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as self._http:
                await self._play()
        finally:
            await self._leave_nothing()

    async def _play(self) -> None:
        await self._be_born()
        for _ in range(self.plan.sessions):
            made = await self._rest("POST", "/api/sessions", json={"agentProfileRef": "chaos"})
            self.sessions.append(made["sessionId"])
        self.viewers = [
            [Viewer(f"{s}.{v}", self._proxy.url, TOKEN, session_id) for v in range(self.plan.viewers)]
            for s, session_id in enumerate(self.sessions)
        ]
        async with asyncio.TaskGroup() as watching:
            watches = [watching.create_task(one.watch()) for many in self.viewers for one in many]
            try:
                async with asyncio.timeout(self.plan.lasts + CALM_WITHIN_S):
                    await self._trouble()
                    await self._come_to_rest()
                    await self._look()
            except TimeoutError as error:
                raise Unwell(f"not at rest in time: {self._stand()}") from error
            finally:
                for viewer in (one for many in self.viewers for one in many):
                    viewer.leave()
                for watch in watches:
                    watch.cancel()

    # The time of trouble.

    async def _trouble(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            ruling = tasks.create_task(self._rule())
            for said in self.plan.said:
                self.sent.append(sent := Sent(said, when_busy=said.when_busy))
                tasks.create_task(self._send(sent))
            for strike in self.plan.strikes:
                tasks.create_task(self._strike(strike))
            await ruling
            self._proxy.weather = lambda _: None

    async def _rule(self) -> None:
        """The lives of the runtime, one after the other; the last one stays."""
        ends_at = time.monotonic() + self.plan.lasts
        self._calm_at = ends_at
        for blow in self.plan.blows:
            if time.monotonic() >= ends_at:
                break
            if self.life is None or self.life.over.done():
                await self._be_born(wait=blow.counts_from == "ready")
            await self._hit(blow)
        if self.life is None or self.life.over.done():
            await self._be_born()
        await asyncio.sleep(max(0.0, ends_at - time.monotonic()))

    async def _be_born(self, *, wait: bool = True) -> None:
        self.figures.lives += 1
        number = self.figures.lives
        told = {
            "data": str(self.data),
            "provider": self.plan.provider,
            "seed": self.plan.seed,
            "life": number,
            "calmAt": self._calm_at,
            "rates": self.plan.rates,
            "logBytes": self.plan.log_bytes,
            "orphanTimeout": ORPHAN_TIMEOUT_S,
        }
        began = time.monotonic()
        self._expected_to_end = False
        self.life = life = self._forks.born(f"{self.plan.seed}-{number}", told, self.data / "runtime.log")
        life.ready.add_done_callback(lambda ready: self._is_ready(life, ready.result(), began))
        life.over.add_done_callback(lambda over: self._is_over(life, over.result()))
        if wait:
            async with asyncio.timeout(READY_WITHIN_S):
                port = await asyncio.shield(life.ready)
            if port is None and not life.over.done():
                raise Unwell("the runtime did not start")

    def _is_ready(self, life: Life, port: int | None, began: float) -> None:
        if life is self.life and port is not None:
            self._proxy.target = port
            self.figures.restarts_ms.append((time.monotonic() - began) * 1000)

    def _is_over(self, life: Life, code: int) -> None:
        if life is self.life:
            self._proxy.target = None
            if not self._expected_to_end:
                self.defects.append(f"the runtime of life {life.name} ended by itself with {code}")

    async def _hit(self, blow: Blow) -> None:
        assert self.life is not None
        await asyncio.sleep(blow.after_s)
        self.figures.blows[blow.how] = self.figures.blows.get(blow.how, 0) + 1
        if blow.how == "pause":
            self.life.send(signal.SIGSTOP)
            await asyncio.sleep(blow.away_s)
            self.life.send(signal.SIGCONT)
            return
        self._expected_to_end = True
        self.life.send(signal.SIGKILL if blow.how == "kill" else signal.SIGTERM)
        async with asyncio.timeout(READY_WITHIN_S):
            code = await asyncio.shield(self.life.over)
        if blow.how == "term" and code not in (0, -signal.SIGTERM):
            self.defects.append(f"SIGTERM ended life {self.life.name} with {code}")
        await asyncio.sleep(blow.away_s)

    async def _send(self, sent: Sent) -> None:
        """Until it is acknowledged or refused for good, over whatever connection there is."""
        said = sent.said
        await asyncio.sleep(said.at)
        viewers = self.viewers[said.session]
        while sent.turn_id is None and sent.refused is None:
            viewer = viewers[(said.viewer + sent.tries) % len(viewers)]
            payload = {
                "sessionId": self.sessions[said.session],
                "content": said.order.text,
                "messageId": said.order.message_id,
                "whenBusy": sent.when_busy,
            }
            if sent.when_busy == "interrupt":
                self._did("interrupt", said.session)
            with suppress(Gone):
                ack = await self._command(viewer, "session:send", payload, sent)
                if ack["ok"]:
                    sent.turn_id = ack["turnId"]
                elif ack["error"]["code"] == "session_busy":
                    sent.refused = ack["error"]["code"]
                elif not ack["error"]["retryable"]:
                    raise Unwell(f"{said.order.message_id} was refused: {ack['error']}")
                else:
                    await asyncio.sleep(0.05)

    async def _command(self, viewer: Viewer, command: str, payload: Told, sent: Sent) -> Told:
        try:
            ack = await viewer.call(command, payload)
        except Gone:
            sent.tries += 1
            await asyncio.sleep(0.02)  # it may have been told at once
            raise
        sent.tries += not ack["ok"] and ack["error"]["code"] != "session_busy"
        return ack

    async def _strike(self, strike: Strike) -> None:
        await asyncio.sleep(strike.at)
        match strike.what:
            case "cut-all":
                self._proxy.cut_all()
            case "kill-sandbox":
                self._kill_sandbox(strike.session)
            case "interrupt":
                await self._interrupt(strike.session)
            case "stop" | "prewarm":
                self._did(strike.what, strike.session)
                await self._rest(
                    "POST", f"/api/sessions/{self.sessions[strike.session]}/{strike.what}", json={}
                )
                self._did(strike.what, strike.session)

    async def _interrupt(self, session: int) -> None:
        payload = {"sessionId": self.sessions[session]}
        for attempt in range(5):
            self._did("interrupt", session)
            with suppress(Gone):
                await self.viewers[session][attempt % len(self.viewers[session])].call(
                    "session:interrupt", payload
                )
                return

    def _did(self, what: str, session: int) -> None:
        self.deeds.append(Deed(what, session, datetime.now(UTC)))
        self.figures.deeds[what] = self.figures.deeds.get(what, 0) + 1

    def _kill_sandbox(self, session: int) -> None:
        """SIGKILL for every process of the session's sandboxes, as far as they are known by now."""
        for file in self.data.glob("sandboxes/*/record.json"):
            with suppress(OSError, ValueError):
                record = json.loads(file.read_text())
                if record["sessionId"] == self.sessions[session]:
                    self._did("kill-sandbox", session)
                    for mark in processes_below(file.parent):
                        mark.kill()

    # The calm after it.

    async def _come_to_rest(self) -> None:
        """Every turn ends, every viewer arrives; what hangs for ever is interrupted."""
        hangs = {sent.said.order.message_id for sent in self.sent if sent.said.order.fate == "hangs"}
        async with asyncio.timeout(CALM_WITHIN_S):
            while True:
                open_turns = 0
                for session, session_id in enumerate(self.sessions):
                    turns = await self._turns(session_id)
                    running = [turn for turn in turns if turn["status"] == "running"]
                    open_turns += sum(turn["status"] in {"queued", "running"} for turn in turns)
                    if any(turn.get("messageId") in hangs for turn in running):
                        await self._interrupt(session)
                if not open_turns:
                    return
                await asyncio.sleep(0.05)

    async def _look(self) -> None:
        """Take a fresh snapshot once the viewers stand where it stands."""
        async with asyncio.timeout(CALM_WITHIN_S):
            for session, session_id in enumerate(self.sessions):
                await self._rest("POST", f"/api/sessions/{session_id}/sync", json={})
                while True:
                    snapshot = await self._rest("GET", f"/api/sessions/{session_id}")
                    settled = snapshot["session"]["runtime"]["phase"] not in {"stopping", "waking", "running"}
                    here = [viewer.state.position for viewer in self.viewers[session]]
                    if settled and all(position == snapshot["position"] for position in here):
                        break
                    await asyncio.sleep(0.02)
                self.fresh.append(snapshot)
                self.turns.append(await self._turns(session_id))

    async def _turns(self, session_id: str) -> list[Told]:
        return (await self._rest("GET", f"/api/sessions/{session_id}/turns?limit=200"))["turns"]

    async def _rest(self, method: str, path: str, **named: Any) -> Any:
        """Over REST, past the bad network; again while the runtime is away or its store is down."""
        while True:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                port = self._proxy.target
                if port is not None:
                    url = f"http://127.0.0.1:{port}{path}"
                    async with (
                        asyncio.timeout(20),
                        self._http.request(method, url, **named) as response,
                    ):
                        answer = await response.json()
                        if response.status < 300:
                            return answer
                        if not answer["retryable"]:
                            raise Unwell(f"{method} {path}: {answer}")
            await asyncio.sleep(0.02)

    def _stand(self) -> str:
        unsent = [s.said.order.message_id for s in self.sent if s.turn_id is None and s.refused is None]
        viewers = [(v.name, v.state.position, v.state.phase) for many in self.viewers for v in many]
        return f"unacknowledged {unsent}, viewers {viewers}, defects {self.defects}"

    # The end.

    async def end(self) -> None:
        """Ask the runtime to end with all its sandboxes; afterwards only the store is left."""
        self._expected_to_end = True
        assert self.life is not None
        self.life.send(signal.SIGINT)
        async with asyncio.timeout(READY_WITHIN_S):
            code = await asyncio.shield(self.life.over)
        if code != 0:
            self.defects.append(f"SIGINT ended the runtime with {code}")
        await _until(
            lambda: not list(processes_below(self.data)), ORPHAN_TIMEOUT_S + 5, "sandboxes to be gone"
        )

    async def _leave_nothing(self) -> None:
        self._expected_to_end = True
        for viewers in self.viewers:
            for viewer in viewers:
                for how, count in viewer.joins.items():
                    self.figures.joins[how] = self.figures.joins.get(how, 0) + count
        self.figures.cuts, self.figures.refused = self._proxy.cuts, self._proxy.refused
        self.figures.messages = sum(sent.turn_id is not None for sent in self.sent)

    async def kill_everything(self) -> None:
        """Whatever became of the story. All of it is below our own folder."""
        self._expected_to_end = True
        if self.life is not None and not self.life.over.done():
            self.life.send(signal.SIGKILL)
            await asyncio.shield(self.life.over)
        for mark in processes_below(self.data):
            mark.kill()


def processes_below(folder: Path) -> list[ProcessMark]:
    """The living processes that have to do with a folder: by their environment, or by a mount."""
    sign = str(folder).encode()
    found = [ProcessMark.of(pid) for pid in all_pids() if pid != os.getpid() and _knows(pid, sign)]
    return [mark for mark in found if mark is not None and mark.running()]


def _knows(pid: int, sign: bytes) -> bool:
    for name in ("environ", "mountinfo"):
        with suppress(OSError):
            if sign in Path(f"/proc/{pid}/{name}").read_bytes():
                return True
    return False


async def _until(holds: Callable[[], bool], within_s: float, what: str) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not holds():
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise Unwell(f"waited in vain for {what}") from error
