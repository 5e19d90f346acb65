"""The workspace's files as the runtime sees them: changes as frames, and reading and writing.

Whatever differs from the manifest was done by the agent and is reported, in order, once; what the
runtime itself wrote is put into the manifest and is not. Changes are found by looks (`manifest`),
which `watching` asks for; paths are walked safely by `beneath`. Nothing here trusts a hint.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from agent_runtime_sandbox import frames
from agent_runtime_sandbox.beneath import FileRefused, Root, decode_path, encode_path
from agent_runtime_sandbox.manifest import (
    WHOLE,
    Entry,
    Facts,
    Listing,
    Manifest,
    Reading,
    Rules,
    Scope,
    entry_of,
    examine,
    survey,
)
from agent_runtime_sandbox.outbox import Outbox

MAX_READ_BYTES: Final = 256 * 1024 * 1024
"""A larger file is not read for anybody."""
_BATCH_FILES: Final = 64


class WorkspaceFiles:
    """All access to the workspace. One change at a time is made to what is known."""

    def __init__(self, root: Root, outbox: Outbox, rules: Rules) -> None:
        self._root = root
        self._outbox = outbox
        self._rules = rules
        self._manifest = Manifest()
        self._lock = asyncio.Lock()
        self._appending: tuple[bytes, hashlib._Hash] | None = None
        self._leaves_out = False

    async def look(self, scopes: Iterable[Scope] = (WHOLE,)) -> None:
        """Find what changed there and emit it; returns when all of it is in the journal."""
        for scope in scopes:
            async with self._lock:
                suspects = await self._compare(scope)
            for start in range(0, len(suspects), _BATCH_FILES):
                await self._outbox.room()
                async with self._lock:
                    await self._read_batch(suspects[start : start + _BATCH_FILES])

    def known(self) -> list[dict[str, Any]]:
        """The manifest, sorted by path."""
        return [{"path": decode_path(path), **_facts(entry)} for path, entry in self._manifest.entries()]

    def ignores(self, path: bytes) -> bool:
        """Whether a path lies in, or would itself as a directory be, an ignored directory."""
        return any(self._rules.ignores(name) for name in path.split(b"/"))

    def knows_directory(self, path: bytes) -> bool:
        """Whether a directory was there at the last look."""
        return self._manifest.knows_directory(path)

    async def write(self, path: object, data: bytes, *, append: bool) -> dict[str, Any]:
        """Write a file anew, or add to it. Raises `FileRefused`."""
        raw = encode_path(path)
        async with self._lock:
            if append:
                entry = await self._append(raw, data)
            else:
                result = await asyncio.to_thread(self._root.write, raw, data)
                digest = hashlib.sha256(data)
                self._appending = (raw, digest)
                entry = entry_of(result, digest.hexdigest())
            if not self.ignores(raw.rpartition(b"/")[0]):
                self._manifest.put(raw, entry)
        return {"size": entry.facts.size, "sha256": entry.sha256}

    async def delete(self, path: object) -> dict[str, Any]:
        """Delete a file; what is not there is deleted already. Raises `FileRefused`."""
        raw = encode_path(path)
        async with self._lock:
            deleted = await asyncio.to_thread(self._root.delete, raw)
            self._manifest.remove(raw)
        return {"deleted": deleted}

    async def read(self, path: object) -> AsyncGenerator[bytes, None]:
        """The pieces of a file, at most `frames.CHUNK_BYTES` each. Raises `FileRefused`."""
        with self._root.file(encode_path(path)) as fd:
            if os.fstat(fd).st_size > MAX_READ_BYTES:
                raise FileRefused("file_too_large", f"a file over {MAX_READ_BYTES} bytes is not read")
            left = MAX_READ_BYTES
            while left > 0 and (piece := await asyncio.to_thread(os.read, fd, frames.CHUNK_BYTES)):
                left -= len(piece)
                yield piece

    async def told(self, path: object, sha256: str) -> None:
        """Somebody was given this content: where it is not what was reported, look again.

        Between two reports a file may have been other than either, and as the first again.
        """
        raw = encode_path(path)
        async with self._lock:
            known = self._manifest.get(raw)
            if known is not None and known.sha256 not in (sha256, None):
                self._manifest.put(raw, replace(known, sha256=sha256, settled=False))

    async def _compare(self, scope: Scope) -> list[bytes]:
        """Emit what is gone; return what has to be read."""
        listing = await asyncio.to_thread(survey, self._root, scope, self._rules)
        found = self._manifest.compare(scope, listing)
        gone, changed = await asyncio.to_thread(self._look_for, found.missing, listing)
        for path in gone:
            self._manifest.remove(path)
        self._manifest.forget_directories(scope, listing)
        if gone:
            self._outbox.emit_all("file", ({"path": decode_path(path), "change": "deleted"} for path in gone))
        room = max(0, self._rules.max_files - self._manifest.count)
        self._note_left_out(scope, not listing.whole or len(found.new) > room)
        return found.changed + changed + found.new[:room]

    def _look_for(self, missing: Sequence[bytes], listing: Listing) -> tuple[list[bytes], list[bytes]]:
        """Which of the files that are known and were not listed are gone, and which have changed."""
        gone, changed = [], []
        for path in missing:
            if listing.tells_of(path):
                gone.append(path)
                continue
            known = self._manifest.get(path)
            try:
                facts = Facts.of(self._root.facts(path))
            except FileRefused as refusal:
                if refusal.code != "io_error":  # else nobody can tell: it stays as it was last seen
                    gone.append(path)
            else:
                if known is None or known.facts != facts or not known.settled:
                    changed.append(path)
        return gone, changed

    async def _read_batch(self, paths: Sequence[bytes]) -> None:
        limit = self._rules.max_file_bytes
        readings = await asyncio.to_thread(lambda: [examine(self._root, path, limit) for path in paths])
        changes = []
        for path, reading in zip(paths, readings, strict=True):
            if reading is not None and (change := self._absorb(path, reading)):
                changes.append(change)
        if changes:
            self._outbox.emit_all("file", changes)

    def _absorb(self, path: bytes, reading: Reading) -> dict[str, Any] | None:
        """Know a reading; return the change that it means, None where the content is as before."""
        known = self._manifest.get(path)
        if known is not None and _is_closed_copy(known, reading.entry):
            self._manifest.put(path, replace(reading.entry, sha256=known.sha256, omitted=None))
            return None
        if known is None and self._manifest.count >= self._rules.max_files:
            self._note_left_out(WHOLE, leaves_out=True)  # another look was quicker to fill the last places
            return None
        self._manifest.put(path, reading.entry)
        if known is not None and _same_content(known, reading.entry):
            return None
        change = "created" if known is None else "modified"
        return {
            "path": decode_path(path),
            "change": change,
            **_facts(reading.entry),
            **_inline(reading.content),
        }

    async def _append(self, raw: bytes, data: bytes) -> Entry:
        before, after = await asyncio.to_thread(self._root.append, raw, data)
        known = self._manifest.get(raw)
        if (
            self._appending is not None
            and self._appending[0] == raw
            and known is not None
            and known.facts == Facts.of(before)
        ):
            digest = self._appending[1]
            digest.update(data)
            return entry_of(after, digest.hexdigest())
        self._appending = None
        reading = await asyncio.to_thread(examine, self._root, raw, self._rules.max_file_bytes)
        return reading.entry if reading is not None else replace(entry_of(after, None), settled=False)

    def _note_left_out(self, scope: Scope, leaves_out: bool) -> None:
        if leaves_out and not self._leaves_out:
            message = f"there are more than {self._rules.max_files} files; further ones are left out"
            self._outbox.emit("fault", code="too_many_files", message=message)
        if leaves_out or scope == WHOLE:
            self._leaves_out = leaves_out


async def send_chunks(files: WorkspaceFiles, path: object, send: Any) -> dict[str, Any]:
    """Read a file as `chunk` frames; return its size and hash. `send(data, last)` takes base64."""
    digest, size, held = hashlib.sha256(), 0, b""
    async with aclosing(files.read(path)) as pieces:
        async for piece in pieces:
            if size:
                await send(data=base64.b64encode(held).decode("ascii"), last=False)
            digest.update(piece)
            size += len(piece)
            held = piece
    await files.told(path, digest.hexdigest())
    await send(data=base64.b64encode(held).decode("ascii"), last=True)
    return {"size": size, "sha256": digest.hexdigest()}


def _is_closed_copy(known: Entry, seen: Entry) -> bool:
    """Whether a file can be read no longer, and is to all appearance what was read of it."""
    return (
        seen.omitted == "unreadable"
        and known.sha256 is not None
        and (known.facts.size, known.facts.mtime_ns) == (seen.facts.size, seen.facts.mtime_ns)
    )


def _same_content(known: Entry, seen: Entry) -> bool:
    if known.sha256 is None or seen.sha256 is None:
        return known.facts == seen.facts and known.omitted == seen.omitted
    return known.sha256 == seen.sha256


def _facts(entry: Entry) -> dict[str, Any]:
    facts = {"size": entry.facts.size, "sha256": entry.sha256, "mtime": round(entry.facts.mtime_ns / 1e9, 3)}
    return facts if entry.omitted is None else {**facts, "omitted": entry.omitted}


def _inline(content: bytes | None) -> dict[str, str]:
    """Text where it is text; NUL counts as binary, because many stores refuse it in text."""
    if content is None:
        return {}
    if b"\0" not in content:
        try:
            return {"encoding": "utf-8", "content": content.decode("utf-8")}
        except UnicodeDecodeError:
            pass
    return {"encoding": "base64", "content": base64.b64encode(content).decode("ascii")}
