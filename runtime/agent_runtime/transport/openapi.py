"""openapi: the OpenAPI document, made from the table of routes and the models; and it as a page.

Pure. The models are those that really read and write, so the document cannot drift from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import version
from typing import Any, Final, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from agent_runtime.events import Event
from agent_runtime.frozen import Frozen
from agent_runtime.transport import wire
from agent_runtime.transport.answers import Problem
from agent_runtime.transport.payloads import Payload
from agent_runtime.transport.route import Route

_SCHEMAS: Final = "#/components/schemas/"
_PATTERN: Final = re.compile(r":[^{}]*}")
"""What a parameter may be, as routes say it: `{path:.+}` is `{path}` in the document."""
_PARAMETER: Final = {"in": "path", "required": True, "schema": {"type": "string"}}


class Envelope(Frozen):
    """One event in its place, on every transport; `event`'s fields stand beside these ones."""

    v: Literal[1] = 1
    session_id: str
    epoch: str
    seq: int = Field(ge=1)
    ts: str
    event: Event


def document(routes: Sequence[Route], prefix: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes under a prefix."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = _PATTERN.sub("}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agent-runtime",
            "version": version("agent-runtime"),
            "description": "AI coding agents in isolated sandboxes, streamed as typed blocks.",
        },
        "servers": [{"url": prefix or "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(routes),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": getattr(route.perform, "__name__", route.path),
        "summary": route.says,
        "parameters": [*_path_parameters(route), *_query_parameters(route), *_header_parameters(route)],
        "responses": _responses(route),
    }
    if route.takes is not None:
        content = {wire.JSON_TYPE: {"schema": _ref(route.takes)}}
        operation["requestBody"] = {"content": content, "required": _is_demanding(route.takes)}
    if route.is_public:
        operation["security"] = []
    return operation


def _responses(route: Route) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if isinstance(route.gives, str):
        content[route.gives] = {"schema": {"type": "object" if route.gives == wire.JSON_TYPE else "string"}}
    elif route.gives is not None:
        content[wire.JSON_TYPE] = {"schema": _ref(route.gives)}
    told: dict[str, Any] = {str(route.status): {"description": "Done."}}
    if content:
        told[str(route.status)]["content"] = content
    if route.streams:
        events = {kind: {"schema": {"type": "string"}} for kind in (wire.SSE_TYPE, wire.NDJSON_TYPE)}
        told["200"] = {"description": "The turn's events (Envelope), up to its end.", "content": events}
    if route.conditional:
        told[str(route.status)]["content"]["application/octet-stream"] = {}
        told["304"] = {"description": "Not changed (If-None-Match)."}
    problem = {wire.PROBLEM_TYPE: {"schema": _ref(Problem)}}
    told["default"] = {"description": "A problem.", "content": problem}
    return told


def _path_parameters(route: Route) -> Iterable[dict[str, Any]]:
    names = [part.split("}")[0].split(":")[0] for part in route.path.split("{")[1:]]
    return ({"name": name} | _PARAMETER for name in names)


def _query_parameters(route: Route) -> Iterable[dict[str, Any]]:
    if route.query is None:
        return ()
    properties = route.query.model_json_schema(by_alias=True)["properties"]
    return ({"name": name, "in": "query", "schema": schema} for name, schema in properties.items())


def _header_parameters(route: Route) -> Iterable[dict[str, Any]]:
    named = {"Idempotency-Key": route.idempotent_by_key, "If-None-Match": route.conditional}
    return (
        {"name": name, "in": "header", "schema": {"type": "string"}}
        for name, is_used in named.items()
        if is_used
    )


def _schemas(routes: Sequence[Route]) -> dict[str, Any]:
    taken = {route.takes for route in routes if route.takes is not None}
    given: set[type[BaseModel]] = {Problem, Envelope}
    given |= {route.gives for route in routes if isinstance(route.gives, type)}
    wanted: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        *((model, "validation") for model in sorted(taken, key=_name)),
        *((model, "serialization") for model in sorted(given, key=_name)),
    ]
    _, schema = models_json_schema(wanted, by_alias=True, ref_template=_SCHEMAS + "{model}")
    found: dict[str, Any] = schema["$defs"]
    return found


def _name(model: type[BaseModel]) -> str:
    return model.__name__


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _SCHEMAS + model.__name__}


def _is_demanding(model: type[Payload]) -> bool:
    return any(field.is_required() for field in model.model_fields.values())


_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    ":root{color-scheme:light dark}"
    "h2{margin:2rem 0 .3rem;font-size:1rem}code,pre{font:13px/1.45 ui-monospace,monospace}"
    "pre{overflow:auto;padding:.7rem;border:1px solid #8884;border-radius:6px}"
    "b{display:inline-block;min-width:4.5rem}p{margin:.2rem 0}summary{cursor:pointer}"
)


def page(shown: dict[str, Any], as_text: str) -> tuple[str, str]:
    """The document as HTML without a script, and the style in it (for its policy's hash)."""
    routes = "".join(
        _route_html(method, path, operation)
        for path, operations in shown["paths"].items()
        for method, operation in operations.items()
    )
    title, release, says = (escape(shown["info"][name]) for name in ("title", "version", "description"))
    html = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}: the API</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<h1>{title} {release}</h1><p>{says}</p>{routes}<h2>The whole document</h2>"
        f"<details><summary>JSON</summary><pre>{escape(as_text)}</pre></details></html>"
    )
    return html, _STYLE


def _route_html(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = ", ".join(f"{given['name']} ({given['in']})" for given in operation["parameters"])
    body = operation.get("requestBody", {}).get("content", {}).get(wire.JSON_TYPE, {}).get("schema", {})
    answers = ", ".join(status for status in operation["responses"] if status != "default")
    lines = [
        f"<h2><code><b>{method.upper()}</b>{escape(path)}</code></h2><p>{escape(operation['summary'])}</p>",
        f"<p>Takes: {escape(parameters)}</p>" if parameters else "",
        f"<p>Body: {escape(body['$ref'].removeprefix(_SCHEMAS))}</p>" if body else "",
        f"<p>Gives: {escape(answers)}</p>",
    ]
    return "".join(lines)
