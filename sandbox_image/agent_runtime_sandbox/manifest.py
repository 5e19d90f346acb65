"""The manifest: what is known of every file of the workspace, and how a look finds the changes.

`survey` looks (lstat only, never following a link), `Manifest.compare` says what differs, `examine`
reads one file. A file's content decides: what was only touched has not changed. Blocking calls;
when to look and what becomes of a change is next door, in `files`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, NamedTuple

from agent_runtime_sandbox.beneath import MAX_DEPTH, OPEN_DIRECTORY, FileRefused, Root, is_temporary
from agent_runtime_sandbox.frames import INLINE_FILE_BYTES

IGNORED_DIRECTORIES: Final = frozenset(
    {".git", "node_modules", ".venv", "__pycache__", "target", "dist", ".cache"}
)
"""Neither watched nor reported, wherever they are in the tree; still readable on request."""
MAX_FILE_BYTES: Final = 32 * 1024 * 1024
"""Larger files are reported with their size and are not read."""
MAX_FILES: Final = 100_000
_FRESH_NS: Final = 50_000_000
"""A change so soon after a look may leave all facts of a file as they were (coarse file times)."""
_PIECE_BYTES: Final = 1024 * 1024


class Facts(NamedTuple):
    """What lstat says and what changes with the content."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, result: os.stat_result) -> Facts:
        """Out of a stat result."""
        return cls(result.st_ino, result.st_size, result.st_mtime_ns, result.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Entry:
    """A known file. `sha256` None: too large to be read. `settled` False: to be read again."""

    facts: Facts
    sha256: str | None
    settled: bool


class Scope(NamedTuple):
    """Where to look: a directory (b"" is the root), alone or with all beneath it."""

    directory: bytes
    deep: bool


WHOLE: Final = Scope(b"", deep=True)
Listing = dict[bytes, dict[bytes, Facts]]
"""Directory to (name to facts), for every directory that was looked at."""


def entry_of(result: os.stat_result, sha256: str | None) -> Entry:
    """A file just read or written."""
    facts = Facts.of(result)
    age = time.time_ns() - max(facts.mtime_ns, facts.ctime_ns)
    return Entry(facts, sha256, settled=age > _FRESH_NS or sha256 is None)


def survey(root: Root, scope: Scope, ignore: Collection[bytes], budget: int = MAX_FILES) -> Listing:
    """Look at a directory or a tree. Raises `FileRefused` (`too_many_files`) over the budget."""
    listing: Listing = {}
    try:
        with root.directory(scope.directory) as fd:
            for directory, names in _Walk(root, ignore, deep=scope.deep).over(fd, scope.directory):
                listing[directory] = names
                budget -= len(names) + 1
                if budget < 0:
                    raise FileRefused("too_many_files", f"the workspace has over {MAX_FILES} files")
    except FileRefused as refusal:
        if refusal.code == "too_many_files":
            raise
    return listing


class _Walk:
    """One look: goes down with a descriptor of each directory, so nothing can be swapped beneath it."""

    def __init__(self, root: Root, ignore: Collection[bytes], *, deep: bool) -> None:
        self._root = root
        self._ignore = ignore
        self._deep = deep

    def over(self, fd: int, path: bytes) -> Iterator[tuple[bytes, dict[bytes, Facts]]]:
        files, folders = self._scan(fd)
        yield path, files
        if not self._deep or path.count(b"/") >= MAX_DEPTH:
            return
        for name in folders:
            try:
                inner = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
            except OSError:
                continue
            try:
                yield from self.over(inner, join(path, name))
            finally:
                os.close(inner)

    def _scan(self, fd: int) -> tuple[dict[bytes, Facts], list[bytes]]:
        files: dict[bytes, Facts] = {}
        folders: list[bytes] = []
        with os.scandir(fd) as found:
            for item in found:
                name = os.fsencode(item.name)
                try:
                    result = item.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISDIR(result.st_mode):
                    if name not in self._ignore:
                        folders.append(name)
                elif self._root.may_read(result) and not is_temporary(name):
                    files[name] = Facts.of(result)
        return files, folders


def join(directory: bytes, name: bytes) -> bytes:
    """A path beneath the root."""
    return directory + b"/" + name if directory else name


class Manifest:
    """Every known file, by directory."""

    def __init__(self) -> None:
        self._directories: dict[bytes, dict[bytes, Entry]] = {}

    def get(self, path: bytes) -> Entry | None:
        """What is known of a file."""
        directory, _, name = path.rpartition(b"/")
        return self._directories.get(directory, {}).get(name)

    def put(self, path: bytes, entry: Entry) -> None:
        """Know a file."""
        directory, _, name = path.rpartition(b"/")
        self._directories.setdefault(directory, {})[name] = entry

    def remove(self, path: bytes) -> None:
        """Know it no longer."""
        directory, _, name = path.rpartition(b"/")
        self._directories.get(directory, {}).pop(name, None)

    def knows_directory(self, path: bytes) -> bool:
        """Whether a directory was there at the last look."""
        return path in self._directories

    def entries(self) -> Iterable[tuple[bytes, Entry]]:
        """All files, sorted by path."""
        found = [
            (join(directory, name), entry)
            for directory, entries in self._directories.items()
            for name, entry in entries.items()
        ]
        return sorted(found, key=itemgetter(0))

    def compare(self, scope: Scope, listing: Listing) -> tuple[list[bytes], list[bytes]]:
        """Paths that are gone and paths to be read, by what a look found; forgets nothing yet."""
        gone = [
            join(directory, name)
            for directory in self._covered(scope)
            for name in self._directories[directory]
            if name not in listing.get(directory, {})
        ]
        suspects = []
        for directory, names in listing.items():
            known = self._directories.setdefault(directory, {})
            for name, facts in names.items():
                entry = known.get(name)
                if entry is None or entry.facts != facts or not entry.settled:
                    suspects.append(join(directory, name))
        return gone, suspects

    def forget_directories(self, scope: Scope, listing: Listing) -> None:
        """Drop directories that a look did not find."""
        for directory in [path for path in self._covered(scope) if path not in listing]:
            if not self._directories[directory]:
                del self._directories[directory]

    def _covered(self, scope: Scope) -> list[bytes]:
        if not scope.deep:
            return [scope.directory] if scope.directory in self._directories else []
        prefix = scope.directory + b"/" if scope.directory else b""
        return [path for path in self._directories if path == scope.directory or path.startswith(prefix)]


@dataclass(frozen=True, slots=True)
class Reading:
    """One file as it was read; `content` only where it travels inside its frame."""

    entry: Entry
    content: bytes | None


def examine(root: Root, path: bytes) -> Reading | None:
    """Read a file; None where there is no regular file (any more)."""
    try:
        with root.file(path) as fd:
            before = os.fstat(fd)
            if before.st_size > MAX_FILE_BYTES:
                return Reading(entry_of(before, None), None)
            return _read(fd, before)
    except (FileRefused, OSError):
        return None


def _read(fd: int, before: os.stat_result) -> Reading:
    digest, kept, total = hashlib.sha256(), bytearray(), 0
    while total <= MAX_FILE_BYTES and (piece := os.read(fd, _PIECE_BYTES)):
        digest.update(piece)
        total += len(piece)
        if total <= INLINE_FILE_BYTES:
            kept += piece
    if total > MAX_FILE_BYTES:
        return Reading(entry_of(before, None), None)
    # The facts are those from before the reading: what is written meanwhile is found by the next look.
    entry = entry_of(before, digest.hexdigest())
    if total != before.st_size:
        entry = Entry(entry.facts._replace(size=total), entry.sha256, settled=False)
    return Reading(entry, bytes(kept) if total <= INLINE_FILE_BYTES else None)
