"""rest: what the routes of sessions, messages, history and profiles do (`docs/wire.md` section 6).

Each handler reads a call, asks the manager and shows the answer; nothing is decided here. Files are
in `rest_files`, event streams in `sse`, pages for people in `pages`.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from agent_runtime.creation import NewSession
from agent_runtime.errors import InvalidRequest
from agent_runtime.events import Position
from agent_runtime.transport import answers, payloads
from agent_runtime.transport.call import Call, json_response
from agent_runtime.transport.sse import accepted, stream_turn, wants_stream

_SESSIONS_PAGE: Final = 50
_TURNS_PAGE: Final = 50


async def create_session(call: Call) -> web.StreamResponse:
    """`POST /api/sessions`."""
    asked = await call.body(payloads.CreateSession, limit=call.config.max_file_bytes)
    if asked.message is not None:
        payloads.check_size(asked.message, call.config.max_message_bytes)
    session, is_new = await call.manager.create_session(
        call.principal,
        NewSession(
            agent_profile_ref=asked.agent_profile_ref,
            architecture=asked.architecture,
            session_options=asked.session_options,
            name=asked.name,
            metadata=asked.metadata,
            workspace_files=tuple((file.path, file.raw()) for file in asked.workspace_files),
            message=asked.message,
            idempotency_key=_idempotency_key(call),
        ),
    )
    headers = {"Location": f"{call.transport.prefix}/api/sessions/{session.session_id}"}
    if not is_new:
        headers["Idempotency-Replayed"] = "true"
    return json_response(session.to_json(), status=201, headers=headers)


async def list_sessions(call: Call) -> web.StreamResponse:
    """`GET /api/sessions`."""
    page = call.query(payloads.SessionsQuery)
    sessions, cursor = await call.manager.list_sessions(
        call.principal, limit=page.limit or _SESSIONS_PAGE, cursor=page.cursor
    )
    return json_response(answers.SessionList(sessions=sessions, next_cursor=cursor).to_json())


async def get_session(call: Call) -> web.StreamResponse:
    """`GET /api/sessions/{sessionId}`."""
    snapshot = await call.manager.snapshot(call.principal, call.session_id)
    return json_response(answers.SessionSnapshot.of(snapshot).to_json())


async def patch_session(call: Call) -> web.StreamResponse:
    """`PATCH /api/sessions/{sessionId}`."""
    asked = await call.body(payloads.PatchSession)
    given = {field: getattr(asked, field) for field in asked.model_fields_set}
    session = await call.manager.update_session(call.principal, call.session_id, **given)
    return json_response(session.to_json())


async def patch_options(call: Call) -> web.StreamResponse:
    """`PATCH /api/sessions/{sessionId}/options`."""
    asked = await call.body(payloads.PatchOptions)
    session = await call.manager.update_options(call.principal, call.session_id, asked.options())
    return json_response(session.to_json())


async def open_port(call: Call) -> web.StreamResponse:
    """`POST /api/sessions/{sessionId}/ports/{port}`."""
    await call.body(payloads.Nothing)
    asked = payloads.read(payloads.PortPath, {"port": call.request.match_info["port"]})
    url, grant = await call.transport.previews.open(call.principal, call.session_id, asked.port)
    return json_response(answers.Preview(url=url, expires_at=grant.expires_at).to_json(), status=201)


async def delete_session(call: Call) -> web.StreamResponse:
    """`DELETE /api/sessions/{sessionId}`."""
    await call.manager.delete_session(call.principal, call.session_id)
    return web.Response(status=204)


async def stop_session(call: Call) -> web.StreamResponse:
    """`POST /api/sessions/{sessionId}/stop`."""
    await call.body(payloads.Nothing)
    session = await call.manager.stop_session(call.principal, call.session_id)
    return json_response(session.to_json())


async def prewarm_session(call: Call) -> web.StreamResponse:
    """`POST /api/sessions/{sessionId}/prewarm`."""
    await call.body(payloads.Nothing)
    session = await call.manager.prewarm_session(call.principal, call.session_id)
    return json_response(session.to_json(), status=202)


async def sync_session(call: Call) -> web.StreamResponse:
    """`POST /api/sessions/{sessionId}/sync`."""
    await call.body(payloads.Nothing)
    session = await call.manager.sync_session(call.principal, call.session_id)
    return json_response(session.to_json())


async def send_message(call: Call) -> web.StreamResponse:
    """`POST /api/sessions/{sessionId}/messages`: accepted, or the turn's events as they come."""
    asked = await call.body(payloads.SendMessage)
    payloads.check_size(asked.content, call.config.max_message_bytes)
    before = await _head(call) if wants_stream(call) else None
    receipt = await call.manager.send(
        call.principal,
        call.session_id,
        asked.content,
        message_id=asked.message_id or _idempotency_key(call),
        when_busy=asked.when_busy,
    )
    if before is not None:
        return await stream_turn(call, receipt, before)
    return json_response(accepted(receipt), status=202)


async def interrupt(call: Call) -> web.StreamResponse:
    """`POST /api/sessions/{sessionId}/interrupt`."""
    asked = await call.body(payloads.InterruptTurn)
    interrupted = await call.manager.interrupt(call.principal, call.session_id, asked.turn_id)
    return json_response(answers.Interrupted(interrupted=interrupted).to_json())


async def list_blocks(call: Call) -> web.StreamResponse:
    """`GET /api/sessions/{sessionId}/blocks`: the newest page before a block, oldest first."""
    page = call.query(payloads.BlocksQuery)
    blocks, has_more = await call.manager.blocks(
        call.principal,
        call.session_id,
        before=page.before,
        limit=page.limit or call.config.block_page,
        conversation_id=page.conversation_id,
    )
    return json_response(answers.BlockList(blocks=blocks, has_more=has_more).to_json())


async def list_turns(call: Call) -> web.StreamResponse:
    """`GET /api/sessions/{sessionId}/turns`: the newest page before an index, in rising index."""
    page = call.query(payloads.TurnsQuery)
    turns = await call.manager.turns(
        call.principal, call.session_id, before=page.before, limit=page.limit or _TURNS_PAGE
    )
    return json_response(answers.TurnList(turns=turns).to_json())


async def list_profiles(call: Call) -> web.StreamResponse:
    """`GET /api/profiles`."""
    return json_response(answers.ProfileList(profiles=await call.manager.profiles()).to_json())


async def get_profile(call: Call) -> web.StreamResponse:
    """`GET /api/profiles/{profileId}`."""
    profile = await call.manager.profile(call.request.match_info["profileId"])
    return json_response(profile.to_json())


async def _head(call: Call) -> Position:
    await call.manager.session(call.principal, call.session_id)  # the log keeps no secrets by itself
    return await call.manager.log.head(call.session_id)


def _idempotency_key(call: Call) -> str | None:
    key = call.request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= 200 and key.isascii() and key.isprintable()):  # noqa: PLR2004
        raise InvalidRequest("Idempotency-Key: 1 to 200 printable ASCII characters.")
    return key
