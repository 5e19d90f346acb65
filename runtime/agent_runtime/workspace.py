"""Workspace: paths that are safe, and file reports from a sandbox read as changes. Pure.

Everything a sandbox says about files is hostile until it went through here. Nothing here touches a
file: contents come as bytes from the runner, and go to the store as values. File names are bytes,
paths are text: what is not UTF-8 in a name is written as an escape (`shown_path`), so that a path
can be stored, sent and asked for again anywhere. Frames alone hold the other form (`raw_path`).
"""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, TypeGuard

from agent_runtime.errors import InvalidRequest
from agent_runtime.records import WorkspaceFile

MAX_PATH_BYTES: Final = 4096
"""PATH_MAX of Linux; no file of a workspace can have a longer one."""
MAX_NAME_BYTES: Final = 255
"""NAME_MAX of Linux."""
MAX_PARTS: Final = 128
"""As deep as a runner looks."""
INLINE_TEXT_BYTES: Final = 64 * 1024
"""Text up to this size travels inside `file_changed` (`wire.md` section 4)."""
_LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_MOST_BYTES: Final = 1 << 53
"""As large as numbers are exact everywhere that a size may go."""
_SHA256: Final = re.compile("[0-9a-f]{64}")
_CHANGES: Final = frozenset({"created", "modified", "deleted"})
_ESCAPED_BYTES: Final = 0xDC00
"""Where Python puts bytes that are no UTF-8 (PEP 383); frames carry them so."""
_FIRST_NO_ASCII: Final = 0x80
_NO_TEXT: Final = re.compile("[\udc80-\udcff]")
_ESCAPE: Final = re.compile(r"\\x([89a-f][0-9a-f]|5c)")
_LIKE_AN_ESCAPE: Final = re.compile(r"\\(?=x(?:[89a-f][0-9a-f]|5c))")


Change: TypeAlias = Literal["created", "modified", "deleted"]


@dataclass(frozen=True, slots=True)
class FileReport:
    """One change as a runner told it, in the frame with this journal `offset`.

    `content` None: it must still be read, unless `file.omitted`.
    """

    change: Change
    file: WorkspaceFile
    content: bytes | None
    offset: int


def shown_path(raw: str) -> str:
    r"""The path as text: each byte that is no UTF-8 (a lone surrogate in a frame) as `\xff`.

    A backslash in a name stays as it is, unless it would be read as such an escape: it is `\x5c` then.
    """
    plain = _LIKE_AN_ESCAPE.sub(r"\\x5c", raw)
    return _NO_TEXT.sub(lambda found: f"\\x{ord(found[0]) - _ESCAPED_BYTES:02x}", plain)


def raw_path(shown: str) -> str:
    """The path as frames hold it; the inverse of `shown_path`."""
    return _ESCAPE.sub(_unescaped, shown)


def _unescaped(found: re.Match[str]) -> str:
    code = int(found[1], 16)
    return chr(code) if code < _FIRST_NO_ASCII else chr(_ESCAPED_BYTES + code)


def safe_path(path: str) -> str:
    """Return the path when it is relative, with `/`, inside the workspace and writable as such.

    Raises `InvalidRequest` (`invalid_path`): empty, absolute, `.` or `..` or empty parts, NUL, too
    long or too deep for a workspace, or not written as `shown_path` writes it.
    """
    try:
        name = raw_path(path).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidRequest("The path cannot be a file name.", code="invalid_path") from error
    parts = name.split(b"/")
    if b"\0" in name or any(part in {b"", b".", b".."} for part in parts):
        raise InvalidRequest("The path is not a relative path inside the workspace.", code="invalid_path")
    if len(name) > MAX_PATH_BYTES or len(parts) > MAX_PARTS or any(len(x) > MAX_NAME_BYTES for x in parts):
        raise InvalidRequest("The path is too long.", code="invalid_path")
    if shown_path(name.decode("utf-8", "surrogateescape")) != path:
        raise InvalidRequest("The path has another spelling.", code="invalid_path")
    return path


def check_tree(paths: Collection[str], *, given: Sequence[str]) -> None:
    """Check that all these files can be; `given` are those of one request.

    Raises `InvalidRequest` (`conflicting_paths`): a file stands where another needs a directory, or a
    path is given twice.
    """
    known = set(paths)
    if len(set(given)) < len(given):
        raise InvalidRequest("A path is given twice.", code="conflicting_paths")
    for path in paths:
        parent = path
        while parent := parent.rpartition("/")[0]:
            if parent in known:
                raise InvalidRequest("A path is both a file and a directory.", code="conflicting_paths")


def file_of(path: str, content: bytes, *, modified_at: datetime) -> WorkspaceFile:
    """A file with its content: text where it is UTF-8, base64 otherwise.

    Raises `InvalidRequest` (`invalid_path`).
    """
    try:
        text, encoding = content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        text, encoding = base64.b64encode(content).decode("ascii"), "base64"
    return WorkspaceFile(
        path=safe_path(path),
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        modified_at=modified_at,
        mime_type=mimetypes.guess_type(path, strict=False)[0],
        encoding="utf-8" if encoding == "utf-8" else "base64",
        content=text,
    )


def content_of(file: WorkspaceFile) -> bytes:
    """The raw bytes of a file that carries its content."""
    content = file.content or ""
    return content.encode("utf-8") if file.encoding == "utf-8" else base64.b64decode(content)


def read_report(frame: Mapping[str, Any]) -> FileReport | None:
    """Read a runner's `file` frame; None where it is malformed, unsafe or contradicts itself."""
    raw, change = frame.get("path"), frame.get("change")
    size: Any = frame.get("size", 0)
    mtime: Any = frame.get("mtime", 0)
    if not isinstance(raw, str) or not _is_change(change):
        return None
    if not _is_number(size, below=_MOST_BYTES) or not _is_number(mtime, below=_LATEST):
        return None
    try:
        path = safe_path(shown_path(raw))
        content = _content(frame)
    except (ValueError, InvalidRequest):
        return None
    modified_at = datetime.fromtimestamp(mtime, UTC)
    offset = frame.get("o", 0)
    if content is not None:
        file = file_of(path, content, modified_at=modified_at)
        return FileReport(change, file, content, offset)
    sha256, omitted = frame.get("sha256"), frame.get("omitted")
    is_kept = change == "deleted" or omitted is None
    file = WorkspaceFile(
        path=path,
        size_bytes=int(size),
        sha256=sha256 if is_kept and isinstance(sha256, str) and _SHA256.fullmatch(sha256) else "",
        modified_at=modified_at,
        mime_type=mimetypes.guess_type(path, strict=False)[0],
        omitted=None if is_kept else "unreadable" if omitted == "unreadable" else "too_large",
    )
    return FileReport(change, file, None, offset)


def shown(report: FileReport) -> WorkspaceFile:
    """The file as `file_changed` shows it: short text inline, everything else without content."""
    inline = report.file.encoding == "utf-8" and report.file.size_bytes <= INLINE_TEXT_BYTES
    return report.file if inline else report.file.model_copy(update={"content": None})


def _is_change(value: object) -> TypeGuard[Change]:
    return isinstance(value, str) and value in _CHANGES


def _is_number(value: object, *, below: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < below


def _content(frame: Mapping[str, Any]) -> bytes | None:
    content = frame.get("content")
    if not isinstance(content, str):
        return None
    if frame.get("encoding") == "base64":
        return base64.b64decode(content, validate=True)
    return content.encode("utf-8")
