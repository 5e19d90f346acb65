"""pages: what is served beside the API: health, metrics, the OpenAPI document, and two pages.

The console's files are looked up once, at start; only those are ever served. All pages work with no
other server in reach, and their policies allow nothing but themselves.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from aiohttp import web

from agent_runtime.errors import RuntimeFault
from agent_runtime.readiness import Readiness
from agent_runtime.transport import answers, openapi
from agent_runtime.transport.call import Call, json_response
from agent_runtime.transport.guard import Perform
from agent_runtime.transport.route import Route

CONSOLE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_CONSOLE_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}
_UNSAFE: Final = "Agents run without isolation: they can read and change whatever this server can."
_PROBE_WITHIN_S: Final = 5.0
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


async def health(call: Call) -> web.StreamResponse:
    """`GET /health`: the process answers; what an operator should know of its isolation beside it."""
    try:
        sandboxes = (await _readiness(call)).parts.get("sandboxes", {})
    except (RuntimeFault, TimeoutError):
        return json_response(answers.Health().to_json())  # whether the parts work is what `/ready` tells
    isolation = str(sandboxes.get("isolation", "unknown"))
    warnings = (_UNSAFE,) if isolation == "none" else None
    return json_response(answers.Health(isolation=isolation, warnings=warnings).to_json())


async def ready(call: Call) -> web.StreamResponse:
    """`GET /ready`: each part's state; 503 while one of them is not ready."""
    try:
        found = await _readiness(call)
    except (RuntimeFault, TimeoutError):
        found = Readiness(ok=False, parts={})
    shown = answers.Ready(ok=found.ok, parts=found.parts)
    return json_response(shown.to_json(), status=200 if found.ok else 503)


async def metrics(call: Call) -> web.StreamResponse:
    """`GET /metrics`: for Prometheus."""
    return web.Response(body=call.transport.metrics.text(), headers={"Content-Type": _METRICS_TYPE})


def document_of(routes: Callable[[], Sequence[Route]]) -> Perform:
    """What serves `GET /api/openapi.json` for these routes."""

    async def openapi_document(call: Call) -> web.StreamResponse:
        return json_response(openapi.document(routes(), call.transport.prefix))

    return openapi_document


def docs_of(routes: Callable[[], Sequence[Route]]) -> Perform:
    """What serves `GET /docs`: the document to read, without a line of script."""

    async def docs(call: Call) -> web.StreamResponse:
        document = openapi.document(routes(), call.transport.prefix)
        text, style = openapi.page(document, json.dumps(document, indent=2))
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; frame-ancestors 'none'"
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})

    return docs


def console_files() -> Mapping[str, Path]:
    """The console's files by path; installed beside this module, or in the checkout it belongs to."""
    here = Path(__file__).resolve()
    folders = (here.parent / "console", here.parents[3] / "clients" / "console")
    folder = next((folder for folder in folders if (folder / "index.html").is_file()), None)
    if folder is None:
        return {}
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix in _CONSOLE_TYPES and path.is_file() and "node_modules" not in path.parts
    }


def console_file(path: Path) -> Perform:
    """What serves one file of the console."""

    async def handler(_call: Call) -> web.StreamResponse:
        data = await asyncio.to_thread(path.read_bytes)
        headers = {
            "Content-Security-Policy": CONSOLE_POLICY,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
        }
        return web.Response(
            body=data, content_type=_CONSOLE_TYPES[path.suffix], charset="utf-8", headers=headers
        )

    return handler


async def _readiness(call: Call) -> Readiness:
    async with asyncio.timeout(_PROBE_WITHIN_S):
        return await call.manager.readiness()
