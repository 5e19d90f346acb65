"""routes: the table of all routes. Registration and the OpenAPI document are both made from it."""

from __future__ import annotations

from typing import Final

from agent_runtime.profile import AgentProfile
from agent_runtime.records import ClientSession, WorkspaceFile
from agent_runtime.transport import answers, pages, payloads, rest, rest_files, sse, wire
from agent_runtime.transport.route import Route

_SESSION: Final = "/api/sessions/{sessionId}"

_SESSIONS: Final = (
    Route(
        method="POST",
        path="/api/sessions",
        perform=rest.create_session,
        says="Create a session; with a message, its first turn begins.",
        takes=payloads.CreateSession,
        gives=ClientSession,
        status=201,
        idempotent_by_key=True,
    ),
    Route(
        method="GET",
        path="/api/sessions",
        perform=rest.list_sessions,
        says="The caller's own sessions, newest first.",
        query=payloads.SessionsQuery,
        gives=answers.SessionList,
    ),
    Route(
        method="GET",
        path=_SESSION,
        perform=rest.get_session,
        says="A snapshot: the session, its newest blocks, queue and files. Starts no sandbox.",
        gives=answers.SessionSnapshot,
    ),
    Route(
        method="PATCH",
        path=_SESSION,
        perform=rest.patch_session,
        says="Change name or metadata; what is not given stays.",
        takes=payloads.PatchSession,
        gives=ClientSession,
    ),
    Route(
        method="PATCH",
        path=f"{_SESSION}/options",
        perform=rest.patch_options,
        says="Change options of the session's agent.",
        takes=payloads.PatchOptions,
        gives=ClientSession,
    ),
    Route(
        method="DELETE",
        path=_SESSION,
        perform=rest.delete_session,
        says="Delete the session and all its data for ever.",
        status=204,
    ),
    Route(
        method="POST",
        path=f"{_SESSION}/stop",
        perform=rest.stop_session,
        says="End the sandbox; the session stays.",
        takes=payloads.Nothing,
        gives=ClientSession,
    ),
    Route(
        method="POST",
        path=f"{_SESSION}/prewarm",
        perform=rest.prewarm_session,
        says="Start the sandbox before the first message.",
        takes=payloads.Nothing,
        gives=ClientSession,
        status=202,
    ),
    Route(
        method="POST",
        path=f"{_SESSION}/sync",
        perform=rest.sync_session,
        says="Make everything durable now.",
        takes=payloads.Nothing,
        gives=ClientSession,
    ),
    Route(
        method="POST",
        path=f"{_SESSION}/ports/{{port}}",
        perform=rest.open_port,
        says="An address that shows what listens at a port of the sandbox, for an hour.",
        takes=payloads.Nothing,
        gives=answers.Preview,
        status=201,
    ),
)

_TURNS: Final = (
    Route(
        method="POST",
        path=f"{_SESSION}/messages",
        perform=rest.send_message,
        says="Send a message: a receipt, or the events of its turn as they come, by Accept.",
        takes=payloads.SendMessage,
        gives=answers.Accepted,
        status=202,
        streams=True,
        idempotent_by_key=True,
    ),
    Route(
        method="POST",
        path=f"{_SESSION}/interrupt",
        perform=rest.interrupt,
        says="End a turn early.",
        takes=payloads.InterruptTurn,
        gives=answers.Interrupted,
    ),
    Route(
        method="GET",
        path=f"{_SESSION}/blocks",
        perform=rest.list_blocks,
        says="History: the newest page of blocks before a block.",
        query=payloads.BlocksQuery,
        gives=answers.BlockList,
    ),
    Route(
        method="GET",
        path=f"{_SESSION}/turns",
        perform=rest.list_turns,
        says="The ledger of turns: the newest page before an index.",
        query=payloads.TurnsQuery,
        gives=answers.TurnList,
    ),
    Route(
        method="GET",
        path=f"{_SESSION}/events",
        perform=sse.stream_events,
        says="All events, from Last-Event-ID (or ?after=) or a snapshot on.",
        query=payloads.EventsQuery,
        gives=wire.SSE_TYPE,
        has_end=False,
    ),
)

_FILES: Final = (
    Route(
        method="GET",
        path=f"{_SESSION}/files",
        perform=rest_files.list_files,
        says="The manifest of the workspace.",
        gives=answers.FileList,
    ),
    Route(
        method="GET",
        path=f"{_SESSION}/files/{{path:(?s:.+)}}",
        perform=rest_files.get_file,
        says="One file: its bytes, or with Accept: application/json an object.",
        gives=WorkspaceFile,
        conditional=True,
    ),
)

_BESIDE: Final = (
    Route(
        method="GET",
        path="/api/profiles",
        perform=rest.list_profiles,
        says="The agent profiles that a session can name.",
        gives=answers.ProfileList,
    ),
    Route(
        method="GET",
        path="/api/profiles/{profileId}",
        perform=rest.get_profile,
        says="One profile.",
        gives=AgentProfile,
    ),
    Route(
        method="GET",
        path="/health",
        perform=pages.health,
        says="Whether the process answers.",
        gives=answers.Health,
        is_public=True,
    ),
    Route(
        method="GET",
        path="/ready",
        perform=pages.ready,
        says="Whether new work can be taken; 503 while not.",
        gives=answers.Ready,
        is_public=True,
    ),
    Route(
        method="GET",
        path="/metrics",
        perform=pages.metrics,
        says="Prometheus metrics.",
        gives="text/plain",
    ),
    Route(
        method="GET",
        path="/api/openapi.json",
        perform=pages.document_of(lambda: ROUTES),
        says="This document.",
        gives=wire.JSON_TYPE,
        is_public=True,
    ),
    Route(
        method="GET",
        path="/docs",
        perform=pages.docs_of(lambda: ROUTES),
        says="This document as a page.",
        gives="text/html",
        is_public=True,
    ),
)

ROUTES: Final[tuple[Route, ...]] = (*_SESSIONS, *_TURNS, *_FILES, *_BESIDE)
