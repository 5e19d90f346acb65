"""Rendering: blocks and events as lines of a terminal. Knows the wire's JSON and rich, nothing else."""

from __future__ import annotations

import json
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.text import Text

_SHOWN_LINES: Final = 12
_SHOWN_CHARS: Final = 300
_STYLES: Final = {"thinking": "dim italic", "assistant_text": ""}
_LABELS: Final = {"thinking": "thinks", "assistant_text": "agent"}
_MAIN: Final = "main"
_MARGIN: Final = " " * 11
_DELEGATING: Final = frozenset({"Agent", "Task"})
"""Tools whose result is a subagent's output, which is shown in its own blocks already."""


class Renderer:
    """Prints a conversation as it grows. `event` takes envelopes, `block` what is whole already."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._streaming: str | None = None
        self._kinds: dict[str, str] = {}
        self._delegated: set[str] = set()

    def waiting(self, message: str) -> None:
        """Show, with a moving mark, what is being waited for."""
        if self._status is None:
            self._status = self._console.status(escape(message))
            self._status.start()
        self._status.update(escape(message))

    def ready(self) -> None:
        """End the waiting."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def event(self, envelope: dict[str, Any]) -> None:
        """Print what one event adds."""
        match envelope["type"]:
            case "session_status":
                self._phase(envelope["runtime"])
            case "block_start":
                self._begin(envelope["block"])
            case "text_delta":
                self._grow(envelope["blockId"], envelope["delta"])
            case "block_complete" if envelope["blockId"] == self._streaming:
                self._break()
            case "block_complete":
                self.block(envelope["block"])
            case "file_changed":
                self._line("file", f"{envelope['change']} {envelope['file']['path']}", "green")
            case "turn_end":
                self.turn(envelope["turn"])

    def block(self, block: dict[str, Any]) -> None:
        """Print a whole block."""
        self._break()
        indent = "" if block["conversationId"] == _MAIN else "  │ "
        match block["type"]:
            case "user_message":
                self._line("you", _text(block["content"]), "bold cyan", indent)
            case "assistant_text" | "thinking" as kind:
                self._line(
                    "thinks" if kind == "thinking" else "agent", block["content"], _STYLES[kind], indent
                )
            case "tool_use":
                if block["toolName"] in _DELEGATING:
                    self._delegated.add(block["toolUseId"])
                self._line("tool", f"{block['toolName']}  {_summary(block['input'])}", "yellow", indent)
            case "tool_result" if block["toolUseId"] not in self._delegated:
                style = "red" if block.get("isError") else "dim"
                self._line("", _cut(_text(block["output"])), style, indent)
            case "subagent":
                name = block.get("name") or block["subagentId"]
                self._line("subagent", f"{name} ({block['status']})", "magenta", indent)
            case "error":
                self._line("error", f"{block['message']} [{block['code']}]", "bold red", indent)
            case "system":
                self._line("system", block["message"], "dim", indent)

    def _phase(self, runtime: dict[str, Any]) -> None:
        if runtime["phase"] == "waking":
            self.waiting(runtime.get("statusMessage") or "Waking")
        else:
            self.ready()

    def _begin(self, block: dict[str, Any]) -> None:
        if block["type"] in _STYLES and block["conversationId"] == _MAIN and block["state"] == "streaming":
            self._kinds[block["id"]] = block["type"]

    def _grow(self, block_id: str, delta: str) -> None:
        kind = self._kinds.get(block_id)
        if kind is None:
            return
        if self._streaming != block_id:
            self._break()
            self._streaming = block_id
            self._console.print(Text(f"{_LABELS[kind]:>9}  ", style="bold"), end="")
        text = delta.replace("\n", f"\n{_MARGIN}")
        self._console.print(Text(text, style=_STYLES[kind]), end="", soft_wrap=True)

    def _break(self) -> None:
        self.ready()
        if self._streaming is not None:
            self._console.print()
            self._streaming = None

    def _line(self, label: str, text: str, style: str, indent: str = "") -> None:
        self._break()
        first, *rest = text.splitlines() or [""]
        self._console.print(Text.assemble((f"{label:>9}  {indent}", "bold"), (first, style)), soft_wrap=True)
        for line in rest:
            self._console.print(Text.assemble((_MARGIN + indent, "bold"), (line, style)), soft_wrap=True)

    def turn(self, turn: dict[str, Any]) -> None:
        """Print how a turn stands or ended."""
        cost = f", ${turn['costUsd']:.4f}" if "costUsd" in turn else ""
        why = f": {turn['error']['message']}" if "error" in turn else ""
        self._line("turn", f"{turn['status']}{cost}{why}", "bold")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", f"[{part.get('type')}]") for part in content)


def _summary(tool_input: dict[str, Any]) -> str:
    """The part of a tool's input that a person looks for first."""
    for name in ("command", "file_path", "description", "pattern", "url"):
        if isinstance(tool_input.get(name), str):
            return _cut(tool_input[name])
    return _cut(json.dumps(tool_input, ensure_ascii=False))


def _cut(text: str) -> str:
    lines = [line[:_SHOWN_CHARS] for line in text.splitlines()]
    more = [f"... {len(lines) - _SHOWN_LINES} more lines"] if len(lines) > _SHOWN_LINES else []
    return "\n".join(lines[:_SHOWN_LINES] + more)
