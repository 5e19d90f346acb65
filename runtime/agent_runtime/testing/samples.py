"""Sample values for contract suites: one of every kind, with every field filled and odd text inside.

What an agent prints is hostile, so the text holds what stores like to lose: other scripts, emoji,
control characters, a NUL, quotes, half a surrogate pair. Not a fake of anything: only values.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

from agent_runtime.blocks import (
    AssistantText,
    Block,
    BlockState,
    ErrorBlock,
    ImagePart,
    ImageSource,
    Subagent,
    SubagentStatus,
    System,
    TextPart,
    Thinking,
    ToolResult,
    ToolStatus,
    ToolUse,
    UserMessage,
)
from agent_runtime.ports import StoredBlock
from agent_runtime.profile import AgentProfile, SubagentProfile
from agent_runtime.records import (
    Checkpoint,
    SandboxRef,
    SessionRecord,
    Turn,
    TurnError,
    TurnStatus,
    Usage,
    WorkspaceFile,
)

NOON: Final = datetime(2025, 3, 1, 12, 0, 0, 123000, tzinfo=UTC)
ODD_TEXT: Final = "naïve 日本語 🦊 \"quoted\" 'single' \\ % _ \t\r\n\u2028 \x00 \x7f \ud83e"
ODD_PATHS: Final = (
    "plain.txt",
    "with space/and  two.txt",
    "line\nbreak.txt",
    "ünïcode/日本語/🦊.txt",
    "quote'\"`;--.sql",
    "percent%_under",
    "not-unicode-\udcff\udc80.bin",
    "\uffee-after-surrogates",
    ".hidden",
    "UPPER.txt",
    "upper.txt",
    "deep/" * 60 + "file",
)
OPAQUE: Final[dict[str, Any]] = {
    "snake_case": {"camelCase": [1, 2.5, -0.0, True, None, "", {}, []]},
    "big": 2**70,
    "odd": ODD_TEXT,
    ODD_TEXT: "odd key",
}


def session(session_id: str = "session-1", **changes: Any) -> SessionRecord:
    """A session with little in it."""
    record = SessionRecord(
        session_id=session_id,
        owner="ada",
        architecture="claude-agent-sdk",
        agent_profile_reference="default",
        created_at=NOON,
        last_activity=NOON,
    )
    return record.model_copy(update=changes)


def full_session(session_id: str = "session-1") -> SessionRecord:
    """A session with every field filled."""
    return SessionRecord(
        session_id=session_id,
        owner="ada",
        name=ODD_TEXT,
        architecture="claude-agent-sdk",
        agent_profile_reference="default",
        session_options={"model": "m", "opaque": OPAQUE},
        metadata=OPAQUE,
        parent_session_id="parent",
        created_at=NOON.astimezone(timezone(timedelta(hours=5, minutes=30))),
        last_activity=NOON + timedelta(milliseconds=1),
        agent_session_id="agent-1",
        sandbox=SandboxRef(
            sandbox_id="sb", provider="local", isolation="bubblewrap", started_at=NOON, data=OPAQUE
        ),
        checkpoint=Checkpoint(
            offset=2**40, transcript={"main": 3, "subagents/x": 0}, next_index=12, translator=OPAQUE
        ),
        untold=ODD_TEXT,
        last_sandbox_id="sb-0",
        restart_count=3,
        usage=Usage(input_tokens=1, output_tokens=2, cache_read_tokens=0, cache_write_tokens=4),
        cost_usd=0.1 + 0.2,
        model="m",
        context_tokens=12,
    )


def text(block_id: str = "b1", content: str = "hello", **changes: Any) -> AssistantText:
    """A plain block."""
    return AssistantText(id=block_id, timestamp=NOON, content=content).model_copy(update=changes)


def tool_use(given: dict[str, Any], block_id: str = "tool") -> ToolUse:
    """A tool call with this input."""
    return ToolUse(id=block_id, timestamp=NOON, tool_name="Write", tool_use_id=block_id, input={}).model_copy(
        update={"input": given}
    )


def stored(*blocks: Block, start: int = 0) -> list[StoredBlock]:
    """Blocks with the indexes from `start` on."""
    return [StoredBlock(index, block) for index, block in enumerate(blocks, start)]


def every_block() -> tuple[Block, ...]:
    """One block of every kind, in every state, every field filled, and the barest of each kind of text."""
    picture = ImageSource(media_type="image/png", data=base64.b64encode(b"\x89PNG").decode())
    at = {"turn_id": "turn-1", "timestamp": NOON}
    return (
        UserMessage(id="u1", content=ODD_TEXT, message_id="m1", **at),
        UserMessage(
            id="u2", content=(TextPart(text="see"), ImagePart(source=picture)), message_id="m2", **at
        ),
        AssistantText(id="a1", content=ODD_TEXT, model="m", state=BlockState.STREAMING, **at),
        AssistantText(id="a2", timestamp=NOON),
        Thinking(id="th1", content="hm", summary="s", duration_ms=0, state=BlockState.ABORTED, **at),
        ToolUse(
            id="tu1",
            tool_name="Write",
            tool_use_id="toolu_1",
            input=OPAQUE,
            status=ToolStatus.DENIED,
            display_name="Write a file",
            description=ODD_TEXT,
            **at,
        ),
        ToolResult(
            id="tr1",
            tool_use_id="toolu_1",
            output=ODD_TEXT,
            is_error=True,
            duration_ms=5,
            truncated=True,
            **at,
        ),
        ToolResult(id="tr2", tool_use_id="toolu_2", output=[OPAQUE, {"type": "text", "text": "x"}], **at),
        Subagent(
            id="sa1",
            subagent_id="agent-7",
            name="scout",
            input=OPAQUE,
            status=SubagentStatus.SUCCESS,
            output="done",
            duration_ms=9,
            tool_use_id="toolu_3",
            **at,
        ),
        text("a3", conversation_id="agent-7"),
        System(id="sy1", subtype="compaction", message="compacted", metadata=OPAQUE, **at),
        ErrorBlock(id="e1", message=ODD_TEXT, code="model_error", retryable=True, **at),
    )


def turn(index: int = 0, **changes: Any) -> Turn:
    """A queued turn; its ids follow from its index."""
    made = Turn(
        turn_id=f"turn-{index}",
        index=index,
        message_id=f"message-{index}",
        status=TurnStatus.QUEUED,
        started_at=NOON,
    )
    return made.model_copy(update=changes)


def queued_turn(index: int = 0) -> Turn:
    """A turn that waits, with what is going to be said."""
    picture = ImageSource(media_type="image/png", data="iVBORw0KGgo=")
    return turn(index, content=(TextPart(text=ODD_TEXT), ImagePart(source=picture)))


def full_turn(index: int = 0) -> Turn:
    """A turn with the fields of one that ended badly."""
    return turn(
        index,
        status=TurnStatus.FAILED,
        stop_reason="error",
        error=TurnError(code="model_error", message=ODD_TEXT, retryable=True),
        ended_at=NOON + timedelta(seconds=3),
        usage=Usage(input_tokens=0),
        cost_usd=0.000001,
        model="m",
    )


def file(path: str = "a.txt", content: bytes = b"hello") -> WorkspaceFile:
    """A file with the hash and size of its bytes; what is not UTF-8 travels as base64."""
    try:
        shown, encoding = content.decode(), "utf-8"
    except UnicodeDecodeError:
        shown, encoding = base64.b64encode(content).decode(), "base64"
    return WorkspaceFile.model_validate(
        {
            "path": path,
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "modified_at": NOON,
            "mime_type": "text/plain",
            "encoding": encoding,
            "content": shown,
        }
    )


def profile(profile_id: str = "writer") -> AgentProfile:
    """A profile with every field filled."""
    return AgentProfile(
        profile_id=profile_id,
        name="Writer",
        description=ODD_TEXT,
        architecture="claude-agent-sdk",
        instructions="Write well.",
        model="m",
        tools=("Read", "Write"),
        subagents={"critic": SubagentProfile(description="d", prompt="p", tools=(), model="m")},
        files={"README.md": "# Hello"},
        options={"maxTurns": 3},
    )
