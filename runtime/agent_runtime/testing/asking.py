"""Reads a Messages API request of a real agent as an `Ask`. Pure.

The prompt is the latest text that the user wrote. A directive in it, `[[script:NAME key=value ...]]`,
names the script; the step is the number of assistant messages since. So nothing has to be
remembered between requests, and resumed, forked and child conversations just work. The agent
puts much into a conversation that no user wrote (reminders, notifications, requests to go on);
it must not be mistaken for a prompt, or a script would begin anew in the middle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from agent_runtime.testing.script import Ask, Result

DIRECTIVE: Final = re.compile(r"\[\[script:([A-Za-z0-9_-]+)((?:\s+[a-z_]+=[^\]\s]+)*)\s*\]\]")
DEFAULT_CWD: Final = "/workspace"

_ADDED: Final = re.compile(r"<(system-reminder|task-notification)>.*?</\1>", re.DOTALL)
_CWD: Final = re.compile(r"[Ww]orking directory: *([^\n]+)")
_CONTINUED: Final = "This session is being continued"
_NOT_THE_USER: Final = (
    _CONTINUED,
    "[Request interrupted",
    "<local-command",
    "<command-",
    "Output token limit hit",
    "Your response above was stopped",
)


class MalformedRequest(ValueError):
    """The body is no request of the Messages API."""


def read_ask(body: Any) -> Ask:
    """What is asked. Raises `MalformedRequest`."""
    messages = _messages(body)
    if wants_summary(body):
        messages = messages[:-1]
    at = max((index for index, message in enumerate(messages) if _is_prompt(message)), default=-1)
    prompt = _spoken(messages[at]) if at >= 0 else ""
    script, params = _directive(prompt)
    since = _after(messages[at + 1 :], params.pop("seen", None))
    begun = params.pop("step", "0")
    return Ask(
        script=script,
        params=params,
        step=_replies(since) + (int(begun) if begun.isdecimal() else 0),
        turn=sum(_is_prompt(message) or _is_continuation(message) for message in messages[: max(at, 0)]),
        prompt=prompt,
        results=tuple(_results(since)),
        cwd=_cwd(body, messages),
        tools=frozenset(str(tool.get("name")) for tool in _objects(body.get("tools"))),
    )


def wants_summary(body: Mapping[str, Any]) -> bool:
    """Whether the agent asks for the summary that replaces the conversation so far."""
    last = "\n".join(_texts(_messages(body)[-1]))
    return "<analysis>" in last and "<summary>" in last


def wants_title(body: Mapping[str, Any]) -> bool:
    """Whether the agent asks for a title of the session; its tools are not offered then."""
    config = body.get("output_config")
    asked = str(config.get("format", "")) if isinstance(config, dict) else ""
    return not body.get("tools") and "'title'" in asked


def continuing(body: Mapping[str, Any], script: str, ask: Ask) -> str:
    """A directive for a summary: whoever reads it goes on where the conversation stood.

    The agent keeps some of the newest messages beside the summary, and may have shown us them or
    not; `seen` marks the newest reply that is counted in `step`.
    """
    replies = [message for message in _messages(body) if message["role"] == "assistant"]
    marks = {"step": str(ask.step), **({"seen": _mark(replies[-1])} if replies else {})}
    fields = "".join(f" {name}={value}" for name, value in {**ask.params, **marks}.items())
    return f"[[script:{script}{fields}]]"


def _messages(body: Any) -> list[dict[str, Any]]:
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages:
        raise MalformedRequest("messages: a list with at least one message is required")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise MalformedRequest("messages: each must be an object with a role")
    return messages


def _is_prompt(message: Mapping[str, Any]) -> bool:
    spoken = _spoken(message)
    if message["role"] != "user" or not spoken:
        return False
    answers_a_call = any(part.get("type") == "tool_result" for part in _objects(message.get("content")))
    return bool(DIRECTIVE.search(spoken)) or not (answers_a_call or _is_continuation(message))


def _is_continuation(message: Mapping[str, Any]) -> bool:
    return _spoken(message).startswith(_CONTINUED)


def _spoken(message: Mapping[str, Any]) -> str:
    """What the user wrote; where that is nothing, the summary that stands for what was written."""
    texts = [_ADDED.sub("", text).strip() for text in _texts(message)]
    own = [text for text in texts if text and not text.startswith(_NOT_THE_USER)]
    return "\n".join(own or [text for text in texts if text.startswith(_CONTINUED)])


def _after(messages: Sequence[dict[str, Any]], seen: str | None) -> Sequence[dict[str, Any]]:
    """The messages after the reply that is marked as seen; all where it is not among them."""
    places = [at for at, message in enumerate(messages) if _mark(message) == seen]
    return messages[places[-1] + 1 :] if places else messages


def _mark(message: Mapping[str, Any]) -> str:
    """A short fingerprint of a reply."""
    ids = [part["id"] for part in _objects(message.get("content")) if isinstance(part.get("id"), str)]
    return hashlib.sha256(json.dumps([message["role"], ids, _texts(message)]).encode()).hexdigest()[:12]


def _replies(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(message["role"] == "assistant" for message in messages)


def _directive(prompt: str) -> tuple[str | None, dict[str, str]]:
    found = DIRECTIVE.findall(prompt)
    if not found:
        return None, {}
    script, fields = found[-1]
    return script, dict(field.split("=", 1) for field in fields.split())


def _results(messages: Sequence[Mapping[str, Any]]) -> Iterator[Result]:
    for message in messages:
        for part in _objects(message.get("content")):
            if part.get("type") == "tool_result":
                yield Result("\n".join(_texts(part)), part.get("is_error") is True)


def _cwd(body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
    for holder in ({"content": body.get("system")}, *messages):
        for text in _texts(holder):
            if found := _CWD.search(text):
                return found[1].strip()
    return DEFAULT_CWD


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in _objects(content) if isinstance(part.get("text"), str)]


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
