"""Runs a plan: a real runtime process in its lives, clients over a bad network, strikes at their moments.

After the time of trouble everything gets calm and all that was begun has to come to its end; `checks` then
looks at what clients hold and at the store. What the story did itself is written down as it happens
(`Deed`), so that a check can ask for the cause of an effect.
"""

import asyncio
import json
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.client import Gone, Viewer
from tests.chaos.deeds import Deed, Figures, Sent, Wish, processes_below
from tests.chaos.life import TOKEN
from tests.chaos.plan import Blow, Doomed, Plan, Strike
from tests.chaos.processes import Forks, Life
from tests.chaos.progress import LOOK_S, Progress, Unwell
from tests.chaos.proxy import Proxy, foul

Told = dict[str, Any]

PATIENCE_S = 15.0
"""Without any progress, until every message is answered and every viewer is where the session is."""
ORPHAN_TIMEOUT_S = 8.0
GIVEN = {"path": "given.txt", "content": "This was here before any agent."}
READY_WITHIN_S = 15.0


class Story:
    """One run of a plan below `data`. `end_all` tells whether sandboxes are ended by us or end as orphans."""

    def __init__(
        self, plan: Plan, forks: Forks, proxy: Proxy, data: Path, *, patience_s: float = PATIENCE_S
    ) -> None:
        self.plan = plan
        self.data = data
        self.sessions: list[str] = []
        self.viewers: list[list[Viewer]] = []
        self.sent: list[Sent] = []
        self.deeds: list[Deed] = []
        self.figures = Figures()
        self.fresh: list[Told] = []
        self.seen: list[list[bytes]] = []
        self.wishes: list[list[Wish]] = []
        self.doomed: list[str] = []
        self.listed: list[str] = []
        self.turns: list[list[Told]] = []
        self.life: Life | None = None
        self.defects: list[str] = []
        self._forks = forks
        self._proxy = proxy
        self._calm_at = 0.0
        self.open: list[list[Told]] = []
        self.progress = Progress(patience_s)
        self._expected_to_end = False
        self._wishing = asyncio.Lock()

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
        for number in range(self.plan.sessions):
            self.sessions.append(await self._make(f"session-{number}"))
            self.wishes.append([])
        self.viewers = [
            [Viewer(f"{s}.{v}", self._proxy.url, TOKEN, session_id) for v in range(self.plan.viewers)]
            for s, session_id in enumerate(self.sessions)
        ]
        async with asyncio.TaskGroup() as watching:
            watches = [watching.create_task(one.watch()) for many in self.viewers for one in many]
            watches.append(watching.create_task(self._note_progress()))
            try:
                async with self.progress.wanted():
                    await self._trouble()
                    await self._come_to_rest()
                    await self._look()
            finally:
                for viewer in (one for many in self.viewers for one in many):
                    viewer.leave()
                for watch in watches:
                    watch.cancel()

    async def _note_progress(self) -> None:
        began = looked = time.monotonic()
        while True:
            troubled_s = min(time.monotonic(), self._calm_at) - began
            self.progress.reached("seconds of trouble", int(troubled_s))
            self.progress.reached("lives and blows", self.figures.lives + sum(self.figures.blows.values()))
            answered = sum(sent.turn_id is not None or sent.refused is not None for sent in self.sent)
            self.progress.reached("messages answered for", answered)
            for session, viewers in enumerate(self.viewers):
                blocks = max(len(viewer.state.blocks) for viewer in viewers)
                self.progress.reached(f"blocks of session {session}", blocks)
            await asyncio.sleep(LOOK_S)
            before, looked = looked, time.monotonic()
            self.progress.passed(looked - before)

    async def _make(self, name: str) -> str:
        """A session with a file of the client's; however often it is asked for, it is made once."""
        made = await self._rest(
            "POST",
            "/api/sessions",
            json={"agentProfileRef": "chaos", "workspaceFiles": [GIVEN]},
            headers={"Idempotency-Key": f"{self.plan.seed}-{name}"},
        )
        return str(made["sessionId"])

    # The time of trouble.

    async def _trouble(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            ruling = tasks.create_task(self._rule())
            for said in self.plan.said:
                self.sent.append(sent := Sent(said, when_busy=said.when_busy))
                tasks.create_task(self._send(sent))
            for strike in self.plan.strikes:
                tasks.create_task(self._strike(strike))
            for doomed in self.plan.doomed:
                tasks.create_task(self._doom(doomed))
            self.progress.waits_for = "the last life of the runtime"
            await ruling
            self.progress.waits_for = "all that was sent to be answered for, and all that was done"
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
            "bounds": self.plan.idle,
            "pool": self.plan.pool,
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
            if sent.when_busy == "interrupt" and not sent.tries:
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
            case "withdraw":
                waiting = [sent for sent in self.sent if sent.turn_id and sent.said.session == strike.session]
                if waiting:
                    await self._interrupt(strike.session, waiting[-1].turn_id)
            case "look-away":
                await asyncio.gather(*(viewer.look_away(0.4) for viewer in self.viewers[strike.session]))
            case "options":
                await self._wish(strike.session)
            case "stop" | "prewarm":
                deed = self._did(strike.what, strike.session)
                await self._rest(
                    "POST", f"/api/sessions/{self.sessions[strike.session]}/{strike.what}", json={}
                )
                deed.until = datetime.now(UTC)

    async def _interrupt(self, session: int, turn_id: str | None = None) -> None:
        payload = {"sessionId": self.sessions[session]} | ({"turnId": turn_id} if turn_id else {})
        for attempt in range(5):
            deed = self._did("withdraw" if turn_id else "interrupt", session, turn_id)
            with suppress(Gone):
                await self.viewers[session][attempt % len(self.viewers[session])].call(
                    "session:interrupt", payload
                )
                deed.until = datetime.now(UTC)
                return

    async def _wish(self, session: int) -> None:
        """One at a time, so that the last one counts."""
        async with self._wishing:
            mood = len(self.wishes[session]) + 1
            await self._rest("PATCH", f"/api/sessions/{self.sessions[session]}/options", json={"mood": mood})
            self.wishes[session].append(Wish(mood, datetime.now(UTC)))
            self.figures.deeds["options"] = self.figures.deeds.get("options", 0) + 1

    async def _doom(self, doomed: Doomed) -> None:
        await asyncio.sleep(doomed.at)
        session_id = await self._make("doomed")
        self.doomed.append(session_id)
        message = {"content": doomed.order.text, "messageId": doomed.order.message_id}
        await self._rest("POST", f"/api/sessions/{session_id}/messages", json=message)
        await asyncio.sleep(doomed.deleted_after)
        await self._rest("DELETE", f"/api/sessions/{session_id}", gone=True)
        self.figures.deeds["delete"] = self.figures.deeds.get("delete", 0) + 1

    def _did(self, what: str, session: int, turn_id: str | None = None) -> Deed:
        self.deeds.append(deed := Deed(what, session, datetime.now(UTC), turn_id))
        self.figures.deeds[what] = self.figures.deeds.get(what, 0) + 1
        return deed

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
        began = time.monotonic()
        self.progress.waits_for = "every turn to end"
        while True:
            still_open: list[list[Told]] = []
            for session, session_id in enumerate(self.sessions):
                turns = await self._turns(session_id)
                still_open.append([turn for turn in turns if turn["status"] in {"queued", "running"}])
                queued = sum(turn["status"] == "queued" for turn in turns)
                self.progress.reached(f"turns of session {session} that began", len(turns) - queued)
                ended = len(turns) - len(still_open[session])
                self.progress.reached(f"turns of session {session} that ended", ended)
                for turn in turns:
                    if turn["status"] == "running" and self._hangs(session, turn, began):
                        await self._interrupt(session, turn["turnId"])
            self.open = still_open
            if not any(still_open):
                return
            await asyncio.sleep(0.05)

    def _hangs(self, session: int, turn: Told, since: float) -> bool:
        """Whether its agent works for ever: on its message, or on one withdrawn that it was handed before."""
        here = [sent for sent in self.sent if sent.said.session == session]
        hanging = [sent for sent in here if sent.said.order.fate == "hangs"]
        if any(sent.said.order.message_id == turn.get("messageId") for sent in hanging):
            return True
        steered = any(sent.when_busy == "steer" for sent in hanging)
        return steered and time.monotonic() - since > 4

    async def _look(self) -> None:
        """Take a fresh snapshot of each session once its viewers stand where it stands."""
        for session, session_id in enumerate(self.sessions):
            self.progress.waits_for = f"session {session} to be synced"
            await self._rest("POST", f"/api/sessions/{session_id}/sync", json={})
            self.fresh.append(await self._settled(session, session_id))
            self.seen.append([viewer.state.bytes() for viewer in self.viewers[session]])
            self.turns.append(await self._turns(session_id))
            self.progress.reached("sessions at rest", len(self.fresh))
        self.progress.waits_for = "the list of sessions"
        page = await self._rest("GET", "/api/sessions")
        self.listed = [each["sessionId"] for each in page["sessions"]]

    async def _settled(self, session: int, session_id: str) -> Told:
        while True:
            snapshot: Told = await self._rest("GET", f"/api/sessions/{session_id}")
            # A phase shows in a snapshot a moment before its event does.
            there = (snapshot["position"], snapshot["session"]["runtime"]["phase"])
            here = {(viewer.state.position, viewer.state.phase) for viewer in self.viewers[session]}
            if here == {there} and self._is_settled(snapshot):
                return snapshot
            self.progress.waits_for = f"session {session}, at {there}, to settle and its viewers to be there"
            await asyncio.sleep(0.02)

    def _is_settled(self, snapshot: Told) -> bool:
        """Whether nothing will happen any more, idleness included."""
        at_last = {"dormant", "failed"}
        if "sandbox_idle_timeout_s" not in self.plan.idle:
            at_last |= {"hibernated"} if self.plan.idle else {"hibernated", "ready"}
        return snapshot["session"]["runtime"]["phase"] in at_last

    async def _turns(self, session_id: str) -> list[Told]:
        return (await self._rest("GET", f"/api/sessions/{session_id}/turns?limit=200"))["turns"]

    async def _rest(self, method: str, path: str, *, gone: bool = False, **named: Any) -> Any:
        """Over REST, past the bad network; again while the runtime is away or its store is down.

        `gone`: that there is no such thing is an answer.
        """
        while True:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                port = self._proxy.target
                if port is not None:
                    url = f"http://127.0.0.1:{port}{path}"
                    async with (
                        asyncio.timeout(20),
                        self._http.request(method, url, **named) as response,
                    ):
                        if response.status == 204 or (gone and response.status == 404):
                            return None
                        answer = await response.json()
                        if response.status < 300:
                            return answer
                        if not answer["retryable"]:
                            raise Unwell(f"{method} {path}: {answer}")
            await asyncio.sleep(0.02)

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
            self.figures.hibernated += max(viewer.state.hibernated for viewer in viewers)
            self.figures.moved += max(viewer.state.moved for viewer in viewers)
        self.figures.standstill_s = self.progress.longest_s
        self.figures.cuts, self.figures.refused = self._proxy.cuts, self._proxy.refused
        for turn in (turn for turns in self.turns for turn in turns):
            end = turn.get("stopReason") or turn["status"]
            self.figures.ends[end] = self.figures.ends.get(end, 0) + 1
        self.figures.messages = sum(sent.turn_id is not None for sent in self.sent)

    async def kill_everything(self) -> None:
        """Whatever became of the story. All of it is below our own folder."""
        self._expected_to_end = True
        if self.life is not None and not self.life.over.done():
            self.life.send(signal.SIGKILL)
            async with asyncio.timeout(READY_WITHIN_S):
                await asyncio.shield(self.life.over)
        for mark in processes_below(self.data):
            mark.kill()


async def _until(holds: Callable[[], bool], within_s: float, what: str) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not holds():
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise Unwell(f"waited in vain for {what}") from error
