"""A Messages API server that plays scripts, so that a real agent runs without an account.

    async with ScriptedModel() as model:
        environment = {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": "any"}

or `python -m agent_runtime.testing.scripted_model --port 8080`. A prompt chooses its script by
`[[script:NAME key=value ...]]`; ready ones are in `scenarios`, own ones are made of the parts in
`script`. The server keeps no conversation: what is due follows from the request (`asking`). It
remembers only how often a part with `times` was met, and the latest requests for assertions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import uuid
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web

from agent_runtime.testing.answering import OVERLOADED, Answer
from agent_runtime.testing.asking import continuing, read_ask, wants_summary, wants_title
from agent_runtime.testing.scenarios import SCENARIOS
from agent_runtime.testing.script import Ask, Break, Fail, Part, Reply, Say, Script, Wait, reply_to

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
KEPT_REQUESTS: Final = 256
KEPT_BYTES: Final = 16 * 1024 * 1024
_KEPT_COUNTS: Final = 10_000
_SESSION_HEADER: Final = "X-Claude-Code-Session-Id"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came, for assertions. `script` and `step` are what was played."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    size: int
    script: str | None = None
    step: int = 0

    @property
    def stream(self) -> bool:
        """Whether a streamed answer was asked for."""
        return self.body.get("stream") is True


class ScriptedModel:
    """Serves between `async with` and its end; `url` is the base address for an agent.

    Args:
        scripts: own scripts by name, beside the ready ones and before them.
        default: the script for the first message of a conversation that names none. Later messages
            that name none get `hello`, which says what this is.
        pace: every delay is multiplied by this; 0 answers at once (a `Wait` lasts all the same).
        host: the address to listen on.
        port: the port; 0 takes a free one.
    """

    def __init__(
        self,
        scripts: Mapping[str, Script] | None = None,
        *,
        default: str = "hello",
        pace: float = 1.0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._scripts: dict[str, Script] = {**SCENARIOS, **(scripts or {})}
        if default not in self._scripts:
            raise ValueError(f"there is no script called {default!r}")
        self._default = default
        self._pace = pace
        self._address = (host, port)
        self._runner: web.AppRunner | None = None
        self._asked: deque[Asked] = deque()
        self._counts: OrderedDict[tuple[Any, ...], int] = OrderedDict()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_post("/v1/messages/count_tokens", self._count_tokens)
        app.router.add_route("*", "/{path:.*}", _unknown)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, *self._address).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        """The base address, without `/v1`."""
        if self._runner is None:
            raise RuntimeError("the scripted model serves only inside its `async with`")
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    @property
    def requests(self) -> tuple[Asked, ...]:
        """The latest requests, oldest first; bounded in number and in bytes."""
        return tuple(self._asked)

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        try:
            body = json.loads(raw)
            ask = read_ask(body)
        except (ValueError, RecursionError) as error:
            return _error(400, "invalid_request_error", str(error)[:200])
        name, reply = self._reply(ask, body)
        self._note(Asked(request.path_qs, dict(request.headers), body, len(raw), name, ask.step))
        reply = self._still_due(
            reply, (request.headers.get(_SESSION_HEADER), len(body["messages"]), ask.prompt)
        )
        if failures := [part for part in reply if isinstance(part, Fail)]:
            return _failure(failures[0])
        while reply and isinstance(reply[0], Wait):
            await asyncio.sleep(reply[0].seconds)
            reply = reply[1:]
        answer = Answer.of(reply, model=str(body.get("model")), request_bytes=len(raw))
        return await self._send(request, answer, stream=body.get("stream") is True)

    def _reply(self, ask: Ask, body: Mapping[str, Any]) -> tuple[str, Reply]:
        """The script's name and what is to be answered."""
        if wants_title(body):
            return "title", [Say(json.dumps({"title": "A scripted session"}))]
        name = ask.script or (self._default if ask.turn == 0 else "hello")
        if wants_summary(body):
            summary = f"The user asked: {ask.prompt[:500]}\n{continuing(body, name, ask)}"
            return "summary", [Say(f"<analysis>All of it.</analysis>\n<summary>{summary}</summary>")]
        script = self._scripts.get(name)
        if script is None:
            return name, [Say(f"There is no script called `{name}`. `[[script:hello]]` names them.")]
        return name, reply_to(script, ask)

    def _still_due(self, reply: Reply, place: tuple[Any, ...]) -> Reply:
        """Leave out what has happened as often as it was to happen at this place of the conversation."""
        return [part for at, part in enumerate(reply) if self._is_due(part, (*place, at))]

    def _is_due(self, part: Part, key: tuple[Any, ...]) -> bool:
        if not isinstance(part, Fail | Break) or part.times is None:
            return True
        count = self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > _KEPT_COUNTS:
            self._counts.popitem(last=False)
        return count <= part.times

    async def _send(self, request: web.Request, answer: Answer, *, stream: bool) -> web.StreamResponse:
        if stream:
            return await self._stream(request, answer)
        breaks = [part.how for part in answer.parts if isinstance(part, Break)]
        if "cut" in breaks:
            return _cut(request, web.Response())
        if breaks:
            return _error(529, OVERLOADED["type"], OVERLOADED["message"])
        await asyncio.sleep(sum(part.seconds for part in answer.parts if isinstance(part, Wait)))
        return web.json_response(answer.whole(), headers=_request_id())

    async def _stream(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers={**headers, **_request_id()})
        await response.prepare(request)
        for beat in answer.beats():
            if beat.breaks == "cut":
                return _cut(request, response)
            if beat.breaks == "overloaded":
                await response.write(_sse({"type": "error", "error": OVERLOADED}))
                break
            if beat.event is not None:
                await response.write(_sse(beat.event))
            pause = beat.wait_s if beat.event is None else beat.wait_s * self._pace
            if pause > 0:
                await asyncio.sleep(pause)
        await response.write_eof()
        return response

    async def _count_tokens(self, request: web.Request) -> web.Response:
        raw = await request.read()
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            return _error(400, "invalid_request_error", str(error)[:200])
        self._note(
            Asked(request.path_qs, dict(request.headers), body if isinstance(body, dict) else {}, len(raw))
        )
        return web.json_response({"input_tokens": max(1, len(raw) // 4)}, headers=_request_id())

    def _note(self, asked: Asked) -> None:
        self._asked.append(asked)
        while len(self._asked) > KEPT_REQUESTS or sum(kept.size for kept in self._asked) > KEPT_BYTES:
            self._asked.popleft()


async def _unknown(request: web.Request) -> web.Response:
    return _error(404, "not_found_error", f"There is no {request.method} {request.path}.")


def _cut(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return response


def _failure(part: Fail) -> web.Response:
    response = _error(part.status, part.kind, part.message)
    if part.retry_after_s is not None:
        response.headers["retry-after"] = f"{part.retry_after_s:g}"
    return response


def _error(status: int, kind: str, message: str) -> web.Response:
    headers = _request_id()
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": headers["request-id"]}
    return web.json_response(body, status=status, headers=headers)


def _request_id() -> dict[str, str]:
    return {"request-id": f"req_{uuid.uuid4().hex[:24]}"}


def _sse(event: Mapping[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


async def _serve(options: argparse.Namespace) -> None:
    model = ScriptedModel(default=options.default, pace=options.pace, host=options.host, port=options.port)
    async with model:
        sys.stdout.write(json.dumps({"event": "ready", "url": model.url}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def main() -> None:
    """Serve until interrupted; when it serves, one line of JSON on standard output tells where."""
    parser = argparse.ArgumentParser(prog="agent_runtime.testing.scripted_model", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--default", default="demo", choices=sorted(SCENARIOS), help="for first messages")
    parser.add_argument("--pace", type=float, default=1.0, help="multiplies every delay; 0 answers at once")
    logging.basicConfig(level=logging.WARNING)
    try:
        asyncio.run(_serve(parser.parse_args()))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
