"""rest_files: a session's workspace over REST: its manifest, and one file's bytes.

An agent wrote these files, so a browser must never run one in our name: each is an attachment,
sandboxed, and of no type but its own.
"""

from __future__ import annotations

import base64
from typing import Final
from urllib.parse import quote

from aiohttp import web

from agent_runtime.errors import NotFound
from agent_runtime.records import WorkspaceFile
from agent_runtime.transport import answers, wire
from agent_runtime.transport.call import Call, json_response

_UNTYPED: Final = "application/octet-stream"


async def list_files(call: Call) -> web.StreamResponse:
    """`GET /api/sessions/{sessionId}/files`."""
    files = await call.manager.manifest(call.principal, call.session_id)
    rules = await call.manager.file_rules(call.principal, call.session_id)
    listed = answers.FileList(files=files, rules=rules, at_limit=len(files) >= rules.max_files)
    return json_response(listed.to_json())


async def get_file(call: Call) -> web.StreamResponse:
    """`GET /api/sessions/{sessionId}/files/{path}`: raw, or as an object for `Accept: application/json`."""
    file = await call.manager.file(call.principal, call.session_id, _path(call))
    tag = f'"{file.sha256}"'
    as_object = call.request.headers.get("Accept", "").split(",")[0].split(";")[0].strip() == wire.JSON_TYPE
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Accept, Authorization, Origin"}
    if _is_known(call.request.headers.get("If-None-Match", ""), tag):
        return web.Response(status=304, headers=headers)
    if as_object:
        return json_response(file.to_json(), headers=headers)
    return web.Response(body=_raw(file), headers=headers | _harmless(file))


def _path(call: Call) -> str:
    path = call.request.match_info["path"]
    if "\0" in path or path.encode(errors="replace").decode() != path:
        raise NotFound("There is no such file.", code="file_not_found")
    return path


def _is_known(shown: str, tag: str) -> bool:
    """Whether `If-None-Match` names this version (weak comparison, as the standard has it for GET)."""
    names = [name.strip().removeprefix("W/") for name in shown.split(",")]
    return "*" in names or tag in names


def _raw(file: WorkspaceFile) -> bytes:
    content = file.content or ""
    return base64.b64decode(content) if file.encoding == "base64" else content.encode()


def _harmless(file: WorkspaceFile) -> dict[str, str]:
    name = quote(file.path.rsplit("/", 1)[-1], safe="")
    mime = file.mime_type or _UNTYPED
    return {
        "Content-Type": mime if mime.isascii() and mime.isprintable() else _UNTYPED,
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
