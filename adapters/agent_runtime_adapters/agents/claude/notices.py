"""Notices: what happened to a conversation beside its text, as system blocks.

Interruption, compaction, clearing, a request that is tried again, output of the agent's own slash
commands. Each block's id is the line's uuid, which the transcript has too. Errors are `outcomes`.
"""

from __future__ import annotations

import re
from typing import Any, Final

from agent_runtime.blocks import MAIN, System
from agent_runtime_adapters.agents.claude.lines import Json, amount, count, ident, text
from agent_runtime_adapters.agents.claude.writing import Writing

_INTERRUPTED: Final = "[Request interrupted by user"
_LOCAL_OUTPUT: Final = re.compile(r"\s*<local-command-stdout>(.*)</local-command-stdout>\s*", re.DOTALL)


def is_interruption(content: str) -> bool:
    """Whether this text, sent in the user's name, only marks that the user interrupted."""
    return content.startswith(_INTERRUPTED)


def is_local_output(content: str) -> bool:
    """Whether this text is what a slash command of the agent printed."""
    return _LOCAL_OUTPUT.fullmatch(content) is not None


def interrupted(line: Json, conversation_id: str, writing: Writing) -> None:
    """The user stopped the agent here."""
    _note(line.get("uuid"), "interrupted", "Interrupted by the user.", writing, conversation_id)


def informed(line: Json, writing: Writing) -> None:
    """The agent says something of its own, such as that a safeguard stepped in."""
    _note(line.get("uuid"), "informational", text(line.get("content")), writing)


def local_output(line: Json, content: str, writing: Writing) -> None:
    """What a slash command printed; nothing where it printed nothing."""
    found = _LOCAL_OUTPUT.fullmatch(content)
    _note(line.get("uuid"), "local_command", (found[1] if found else content).strip(), writing)


def compacted(line: Json, about: Json, writing: Writing) -> None:
    """What came before is only a summary for the agent from here on."""
    metadata = {
        "trigger": ident(about.get("trigger")),
        "preTokens": count(about.get("pre_tokens")),
        "postTokens": count(about.get("post_tokens")),
    }
    _note(line.get("uuid"), "compaction", "The conversation was compacted.", writing, metadata=metadata)


def retried(line: Json, writing: Writing) -> None:
    """The model's API failed and is asked again after a while."""
    metadata = {
        "attempt": count(line.get("attempt")),
        "maxRetries": count(line.get("max_retries")),
        "delayMs": amount(line.get("retry_delay_ms")),
        "status": count(line.get("error_status")),
        "error": ident(line.get("error")),
    }
    message = "The model's API failed; it is asked again."
    _note(line.get("uuid"), "api_retry", message, writing, metadata=metadata)


def cleared(line: Json, writing: Writing) -> None:
    """The agent forgot the conversation. The id is the command's, the one thing both records share."""
    command = ident(line.get("user_message_uuid"))
    uuid = f"{command}:cleared" if command else line.get("uuid")
    _note(uuid, "cleared", "The conversation begins anew; the agent forgot it.", writing)


def _note(
    uuid: object,
    subtype: str,
    message: str,
    writing: Writing,
    conversation_id: str = MAIN,
    *,
    metadata: dict[str, Any] | None = None,
) -> None:
    block_id = ident(uuid)
    if block_id is None or not message:
        return
    known = {name: value for name, value in (metadata or {}).items() if value is not None}
    writing.whole(
        System(
            id=block_id,
            conversation_id=conversation_id,
            turn_id=writing.turn_id,
            timestamp=writing.at,
            subtype=subtype,
            message=message,
            metadata=known or None,
        )
    )
