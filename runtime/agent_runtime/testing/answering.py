"""Turns the parts of a reply into an answer of the Messages API, streamed or whole. Pure.

A streamed answer is a sequence of beats: an event to send, a time to wait after it, or a break. A
block is closed when the next begins, so that a break falls into the middle of a block. Who sends
and waits is `scripted_model`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from agent_runtime.testing.script import Break, Call, Part, Reply, Say, Stop, Think, Tokens, Wait

_SIGNATURE: Final = "c2NyaXB0ZWQ="
_CHARACTERS_A_TOKEN: Final = 4

OVERLOADED: Final = {"type": "overloaded_error", "message": "Overloaded"}


@dataclass(frozen=True, slots=True)
class Beat:
    """One thing to do while streaming: send `event`, then wait, or break off."""

    event: dict[str, Any] | None = None
    wait_s: float = 0.0
    breaks: Literal["overloaded", "cut"] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply on its way to becoming an answer; block ids are given here, once."""

    model: str
    parts: Reply
    blocks: tuple[dict[str, Any] | None, ...]
    usage: dict[str, int]
    stop_reason: str
    message_id: str

    @classmethod
    def of(cls, parts: Reply, *, model: str, request_bytes: int) -> Answer:
        """Prepare an answer to a request of this size."""
        blocks = tuple(_block(part) for part in parts)
        told = [part.input_tokens for part in parts if isinstance(part, Tokens)]
        stops = [part.reason for part in parts if isinstance(part, Stop)]
        calls = any(isinstance(part, Call) for part in parts)
        usage = {
            "input_tokens": told[-1] if told else request_bytes // _CHARACTERS_A_TOKEN,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": max(
                1, sum(len(json.dumps(block)) for block in blocks if block) // _CHARACTERS_A_TOKEN
            ),
        }
        natural = "tool_use" if calls else "end_turn"
        return cls(
            model, parts, blocks, usage, stops[-1] if stops else natural, f"msg_{uuid.uuid4().hex[:24]}"
        )

    def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        content = [block for block in self.blocks if block]
        return {**self._head(), "content": content, "stop_reason": self.stop_reason, "usage": self.usage}

    def beats(self) -> Iterator[Beat]:
        """The answer as it is streamed."""
        head = {
            **self._head(),
            "content": [],
            "stop_reason": None,
            "usage": {**self.usage, "output_tokens": 1},
        }
        yield Beat({"type": "message_start", "message": head})
        yield Beat({"type": "ping"})
        index = -1
        for part, block in zip(self.parts, self.blocks, strict=True):
            if isinstance(part, Wait):
                yield Beat(wait_s=part.seconds)
            elif isinstance(part, Break):
                yield Beat(breaks=part.how)
            elif block is not None:
                if index >= 0:
                    yield Beat({"type": "content_block_stop", "index": index})
                index += 1
                yield from _block_beats(index, part, block)
        if index >= 0:
            yield Beat({"type": "content_block_stop", "index": index})
        delta = {"stop_reason": self.stop_reason, "stop_sequence": None}
        yield Beat({"type": "message_delta", "delta": delta, "usage": self.usage})
        yield Beat({"type": "message_stop"})

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "stop_sequence": None,
        }


def _block(part: Part) -> dict[str, Any] | None:
    if isinstance(part, Say):
        return {"type": "text", "text": part.text}
    if isinstance(part, Think):
        return {"type": "thinking", "thinking": part.text, "signature": _SIGNATURE}
    if isinstance(part, Call):
        return {
            "type": "tool_use",
            "id": f"toolu_{uuid.uuid4().hex[:24]}",
            "name": part.tool,
            "input": dict(part.input),
        }
    return None


def _block_beats(index: int, part: Part, block: dict[str, Any]) -> Iterator[Beat]:
    assert isinstance(part, Say | Think | Call)
    if isinstance(part, Say):
        empty, kind, field, text = {**block, "text": ""}, "text_delta", "text", part.text
    elif isinstance(part, Think):
        empty, kind, field, text = (
            {**block, "thinking": "", "signature": ""}, "thinking_delta", "thinking", part.text,
        )  # fmt: skip
    else:
        empty, kind, field, text = (
            {**block, "input": {}}, "input_json_delta", "partial_json", json.dumps(block["input"]),
        )  # fmt: skip
    yield Beat({"type": "content_block_start", "index": index, "content_block": empty})
    for at in range(0, len(text), max(1, part.chunk)):
        delta = {"type": kind, field: text[at : at + part.chunk]}
        yield Beat({"type": "content_block_delta", "index": index, "delta": delta}, wait_s=part.delay_s)
    if isinstance(part, Think):
        signed = {"type": "signature_delta", "signature": _SIGNATURE}
        yield Beat({"type": "content_block_delta", "index": index, "delta": signed})
