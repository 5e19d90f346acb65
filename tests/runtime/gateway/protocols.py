"""One request of each protocol: what its clients send and read, and what the vendor is to see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.gemini import Gemini
from agent_runtime.gateway.openai import OpenAI
from agent_runtime.gateway.vendor import Vendor
from agent_runtime.ports import GatewayEndpoint
from agent_runtime.records import Usage
from tests.runtime.gateway.upstream import agent

REAL = "the-real-key-of-the-host"
OWN = "a-key-that-the-agent-brought"


@dataclass(frozen=True)
class Case:
    """One request of a protocol, and how its clients see things."""

    vendor: Callable[[str], Vendor]
    target: str
    arrives_at: str
    shown: Callable[[str], dict[str, str]]
    real: tuple[str, str]
    body: dict[str, Any]
    whole: Any
    stream: list[Any]
    usage: Usage
    refused: Callable[[int, str], dict[str, Any]]


def anthropic_error(status: int, message: str) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 400: "invalid_request_error"}
    kinds |= {413: "request_too_large", 504: "timeout_error"}
    return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": message}}


def openai_error(status: int, message: str) -> dict[str, Any]:
    codes = {401: "invalid_api_key", 403: "permission_denied", 413: "request_too_large"}
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": codes.get(status)}}


def gemini_error(status: int, message: str) -> dict[str, Any]:
    names = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 502: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
    return {"error": {"code": status, "message": message, "status": names.get(status, "INVALID_ARGUMENT")}}


CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 9,
    "total_tokens": 109,
    "prompt_tokens_details": {"cached_tokens": 60},
}
RESPONSES_USAGE = {
    "input_tokens": 100,
    "output_tokens": 9,
    "total_tokens": 109,
    "input_tokens_details": {"cached_tokens": 60},
}
GEMINI_USAGE = {
    "promptTokenCount": 90,
    "toolUsePromptTokenCount": 10,
    "cachedContentTokenCount": 60,
    "candidatesTokenCount": 5,
    "thoughtsTokenCount": 4,
}
USED = Usage(input_tokens=40, cache_read_tokens=60, output_tokens=9)
ANTHROPIC_USAGE = {"input_tokens": 40, "cache_read_input_tokens": 60, "output_tokens": 9}

CASES = {
    "messages": Case(
        vendor=lambda url: Anthropic(url, api_key=REAL),
        target="/v1/messages",
        arrives_at="/v1/messages",
        shown=lambda token: {"x-api-key": token},
        real=("x-api-key", REAL),
        body={"model": "m-1", "messages": []},
        whole={"type": "message", "usage": ANTHROPIC_USAGE},
        stream=[
            {"type": "message_start", "message": {"usage": {**ANTHROPIC_USAGE, "output_tokens": 1}}},
            {"type": "message_delta", "usage": {"output_tokens": 9}},
        ],
        usage=USED,
        refused=anthropic_error,
    ),
    "chat": Case(
        vendor=lambda url: OpenAI(url + "/v1", api_key=REAL),
        target="/v1/chat/completions",
        arrives_at="/v1/chat/completions",
        shown=lambda token: {"Authorization": f"Bearer {token}"},
        real=("Authorization", f"Bearer {REAL}"),
        body={"messages": [], "model": "m-1", "stream_options": {"include_usage": True}},
        whole={"object": "chat.completion", "choices": [], "usage": CHAT_USAGE},
        stream=[
            {"choices": [{"delta": {"content": '"usage"'}}], "usage": None},
            {"choices": [], "usage": CHAT_USAGE},
        ],
        usage=USED,
        refused=openai_error,
    ),
    "responses": Case(
        vendor=lambda url: OpenAI(url + "/prefix/v1/", api_key=REAL),
        target="/v1/responses",
        arrives_at="/prefix/v1/responses",
        shown=lambda token: {"Authorization": f"Bearer {token}"},
        real=("Authorization", f"Bearer {REAL}"),
        body={"model": "m-1", "input": [], "stream": True},
        whole={"object": "response", "output": [], "usage": RESPONSES_USAGE},
        stream=[
            {"type": "response.created", "response": {"usage": None}},
            {"type": "response.output_text.delta", "delta": '"usage"'},
            {"type": "response.completed", "response": {"output": [], "usage": RESPONSES_USAGE}},
        ],
        usage=USED,
        refused=openai_error,
    ),
    "gemini": Case(
        vendor=lambda url: Gemini(url, api_key=REAL),
        target="/v1beta/models/m-1:streamGenerateContent?alt=sse",
        arrives_at="/v1beta/models/m-1:streamGenerateContent?alt=sse",
        shown=lambda token: {"x-goog-api-key": token},
        real=("x-goog-api-key", REAL),
        body={"contents": []},
        whole=[
            {"candidates": [], "usageMetadata": {"promptTokenCount": 90}},
            {"candidates": [], "usageMetadata": GEMINI_USAGE},
        ],
        stream=[
            {"candidates": [], "usageMetadata": {"promptTokenCount": 90}},
            {"candidates": [], "usageMetadata": GEMINI_USAGE},
        ],
        usage=USED,
        refused=gemini_error,
    ),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def everything(url: str) -> list[Vendor]:
    """All vendors, at one address: their paths are disjoint."""
    return [Anthropic(url, api_key=REAL), OpenAI(url + "/v1", api_key=REAL), Gemini(url, api_key=REAL)]


async def ask(
    endpoint: GatewayEndpoint, case: Case, *, token: str | None = None, **changes: Any
) -> tuple[int, Any]:
    """Status and JSON of an answer. `changes`: target, method, body, headers."""
    shown = case.shown(endpoint.token if token is None else token)
    target, method = changes.get("target", case.target), changes.get("method", "POST")
    async with agent(endpoint, token="") as client:
        client.headers.pop("x-api-key")
        body = changes.get("body", case.body)
        given = {"data": body} if isinstance(body, bytes) else {"json": body}
        headers = {**shown, "Content-Type": "application/json", **changes.get("headers", {})}
        async with client.request(method, target, headers=headers, **given) as response:
            return response.status, await response.json(content_type=None)
