"""The manifest: what is known of every file of the workspace, and how a look finds the changes.

`survey` looks (lstat only, never following a link), `Manifest.compare` says what differs, `examine`
reads one file. A file's content decides: what was only touched has not changed. Blocking calls;
when to look and what becomes of a change is next door, in `files`.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, Literal, NamedTuple

from agent_runtime_sandbox.beneath import MAX_DEPTH, OPEN_DIRECTORY, FileRefused, Root, is_temporary
from agent_runtime_sandbox.frames import INLINE_FILE_BYTES

_FRESH_NS: Final = 50_000_000
"""A change so soon after a look may leave all facts of a file as they were (coarse file times)."""
_PIECE_BYTES: Final = 1024 * 1024
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""A name that was there a moment ago is no directory (any more). All other errors tell nothing."""

Omitted = Literal["too_large", "unreadable"]


class Rules:
    """Which files are told of, and how much of them.

    Args:
        ignore: patterns (`fnmatch`) of the names of directories that are neither watched nor told,
            wherever they are in the tree; what is in them can still be read on request.
        max_file_bytes: larger files are told with their size, and are not read.
        max_files: further files are not told.
    """

    def __init__(self, ignore: Iterable[str], max_file_bytes: int, max_files: int) -> None:
        self.max_file_bytes = max_file_bytes
        self.max_files = max_files
        self._ignored = re.compile("|".join(fnmatch.translate(pattern) for pattern in ignore) or r"(?!)")

    def ignores(self, name: bytes) -> bool:
        """Whether a directory of this name is left alone."""
        return self._ignored.match(os.fsdecode(name)) is not None


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
    """A known file. `sha256` None: not read, `omitted` says why. `settled` False: to be read again."""

    facts: Facts
    sha256: str | None
    settled: bool
    omitted: Omitted | None = None


class Scope(NamedTuple):
    """Where to look: a directory (b"" is the root), alone or with all beneath it."""

    directory: bytes
    deep: bool


WHOLE: Final = Scope(b"", deep=True)


@dataclass(slots=True)
class Listing:
    """What a look found.

    `directories`: directory to (name to facts), for each that was looked at. `closed`: directories
    of which not everything can be seen. `whole` False: there was more than a look takes in.
    """

    directories: dict[bytes, dict[bytes, Facts]] = field(default_factory=dict)
    closed: set[bytes] = field(default_factory=set)
    whole: bool = True

    def tells_of(self, path: bytes) -> bool:
        """Whether a file that is not listed is not there."""
        if not self.whole:
            return False
        while self.closed and path:
            path = path.rpartition(b"/")[0]
            if path in self.closed:
                return False
        return True


def entry_of(result: os.stat_result, sha256: str | None) -> Entry:
    """A file just read or written."""
    facts = Facts.of(result)
    age = time.time_ns() - max(facts.mtime_ns, facts.ctime_ns)
    return Entry(facts, sha256, settled=age > _FRESH_NS)


def survey(root: Root, scope: Scope, rules: Rules) -> Listing:
    """Look at a directory or a tree; at not much more than so many files as the rules allow."""
    walk = _Walk(root, rules, deep=scope.deep)
    try:
        with root.directory(scope.directory) as fd:
            walk.over(fd, scope.directory)
    except FileRefused as refusal:
        if refusal.code == "io_error":
            walk.listing.closed.add(scope.directory)
    return walk.listing


class _Walk:
    """One look: goes down with a descriptor of each directory, so nothing can be swapped beneath it."""

    def __init__(self, root: Root, rules: Rules, *, deep: bool) -> None:
        self.listing = Listing()
        self._root = root
        self._rules = rules
        self._deep = deep
        self._files_left = self._directories_left = rules.max_files + 1

    def over(self, fd: int, path: bytes) -> None:
        """Look at one directory, and at those in it."""
        files: dict[bytes, Facts] = {}
        self.listing.directories[path] = files
        try:
            folders = self._scan(fd, path, files)
        except OSError:
            self.listing.closed.add(path)
            return
        if not self._deep or path.count(b"/") >= MAX_DEPTH:
            return
        for name in folders:
            self._directories_left -= 1
            if self._files_left < 0 or self._directories_left < 0:
                self.listing.whole = False
                return
            try:
                inner = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno not in _GONE:
                    self.listing.closed.add(join(path, name))
                continue
            try:
                self.over(inner, join(path, name))
            finally:
                os.close(inner)

    def _scan(self, fd: int, path: bytes, files: dict[bytes, Facts]) -> list[bytes]:
        folders: list[bytes] = []
        with os.scandir(fd) as found:
            for item in found:
                name = os.fsencode(item.name)
                try:
                    result = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError:
                    self.listing.closed.add(path)
                    continue
                if stat.S_ISDIR(result.st_mode):
                    if not self._rules.ignores(name):
                        folders.append(name)
                elif self._root.may_read(result) and not is_temporary(name):
                    files[name] = Facts.of(result)
                    self._files_left -= 1
                if self._files_left < 0 or len(folders) > self._directories_left:
                    self.listing.whole = False
                    break
        return folders


def join(directory: bytes, name: bytes) -> bytes:
    """A path beneath the root."""
    return directory + b"/" + name if directory else name


class Comparison(NamedTuple):
    """What a look means: paths that were not found, and paths to be read."""

    missing: list[bytes]
    changed: list[bytes]
    new: list[bytes]


class Manifest:
    """Every known file, by directory. `count`: how many there are."""

    def __init__(self) -> None:
        self._directories: dict[bytes, dict[bytes, Entry]] = {}
        self.count = 0

    def get(self, path: bytes) -> Entry | None:
        """What is known of a file."""
        directory, _, name = path.rpartition(b"/")
        return self._directories.get(directory, {}).get(name)

    def put(self, path: bytes, entry: Entry) -> None:
        """Know a file."""
        directory, _, name = path.rpartition(b"/")
        entries = self._directories.setdefault(directory, {})
        self.count += name not in entries
        entries[name] = entry

    def remove(self, path: bytes) -> None:
        """Know it no longer."""
        directory, _, name = path.rpartition(b"/")
        if self._directories.get(directory, {}).pop(name, None) is not None:
            self.count -= 1

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

    def compare(self, scope: Scope, listing: Listing) -> Comparison:
        """What differs from what a look found; forgets nothing yet."""
        found = Comparison([], [], [])
        for directory in self._covered(scope):
            names = listing.directories.get(directory, {})
            found.missing.extend(join(directory, x) for x in self._directories[directory] if x not in names)
        for directory, names in listing.directories.items():
            known = self._directories.setdefault(directory, {})
            for name, facts in names.items():
                entry = known.get(name)
                if entry is None:
                    found.new.append(join(directory, name))
                elif entry.facts != facts or not entry.settled:
                    found.changed.append(join(directory, name))
        return found

    def forget_directories(self, scope: Scope, listing: Listing) -> None:
        """Drop directories that a look did not find."""
        for directory in [path for path in self._covered(scope) if path not in listing.directories]:
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


def examine(root: Root, path: bytes, max_bytes: int) -> Reading | None:
    """Read a file; None where there is no regular file (any more)."""
    try:
        with root.file(path) as fd:
            before = os.fstat(fd)
            return _too_large(before) if before.st_size > max_bytes else _read(fd, before, max_bytes)
    except (FileRefused, OSError) as error:
        if isinstance(error, FileRefused) and error.code != "io_error":
            return None
    try:
        facts = Facts.of(root.facts(path))
    except FileRefused:
        return None
    return Reading(Entry(facts, None, settled=False, omitted="unreadable"), None)


def _read(fd: int, before: os.stat_result, max_bytes: int) -> Reading:
    digest, kept, total = hashlib.sha256(), bytearray(), 0
    while total <= max_bytes and (piece := os.read(fd, _PIECE_BYTES)):
        digest.update(piece)
        total += len(piece)
        if total <= INLINE_FILE_BYTES:
            kept += piece
    if total > max_bytes:
        return _too_large(before)
    # The facts are those from before the reading: what is written meanwhile is found by the next look.
    entry = entry_of(before, digest.hexdigest())
    if total != before.st_size:
        entry = Entry(entry.facts._replace(size=total), entry.sha256, settled=False)
    return Reading(entry, bytes(kept) if total <= INLINE_FILE_BYTES else None)


def _too_large(before: os.stat_result) -> Reading:
    return Reading(Entry(Facts.of(before), None, settled=True, omitted="too_large"), None)
