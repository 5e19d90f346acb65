"""Opening, writing and deleting files strictly beneath one directory, whatever lies in it.

Each step from the root is opened with O_NOFOLLOW, so no symlink is ever followed, not even one
that is swapped in meanwhile; nothing but regular files is read or written, and opening one never
blocks. Names are bytes inside and text with surrogate escapes outside. Blocking calls; knows
nothing of frames or of what a change is.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

MAX_PATH_BYTES: Final = 4096
MAX_DEPTH: Final = 128
_MAX_NAME_BYTES: Final = 255
_TEMPORARY: Final = b".agent-runtime-"
OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class FileRefused(Exception):
    """A path or a file that is not served.

    Codes: invalid_path, not_found, not_a_file, io_error (it may be there, and cannot be had).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode_path(path: object) -> bytes:
    """Check a relative path and return its bytes. Raises `FileRefused` (`invalid_path`)."""
    if not isinstance(path, str):
        raise FileRefused("invalid_path", "a path is a string")
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise FileRefused("invalid_path", "a path holds characters that no file name has") from error
    parts = raw.split(b"/")
    if b"\0" in raw or len(raw) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        raise FileRefused("invalid_path", "a path is too long or holds NUL")
    if any(part in (b"", b".", b"..") or len(part) > _MAX_NAME_BYTES for part in parts):
        raise FileRefused("invalid_path", "a path is relative, without empty, `.` or `..` parts")
    return raw


def decode_path(raw: bytes) -> str:
    """The text of a path; bytes that are no UTF-8 become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def is_temporary(name: bytes) -> bool:
    """Whether a file is a half-written one of ours."""
    return name.startswith(_TEMPORARY)


class Root:
    """One directory, held open. `raw` paths are those of `encode_path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, OPEN_DIRECTORY)
        facts = os.fstat(self._fd)
        self._uid, self._gid = facts.st_uid, facts.st_gid

    def close(self) -> None:
        """Give the directory back."""
        os.close(self._fd)

    @contextmanager
    def directory(self, raw: bytes, *, create: bool = False) -> Iterator[int]:
        """A descriptor of a directory beneath; b"" is the root itself. Raises `FileRefused`."""
        fd = os.dup(self._fd)
        try:
            for name in raw.split(b"/") if raw else ():
                if create:
                    self._make_directory(name, fd)
                with _refusals():
                    deeper = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = deeper
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def file(self, raw: bytes, flags: int = os.O_RDONLY) -> Iterator[int]:
        """A descriptor of a regular file beneath. Raises `FileRefused`."""
        parent, name = _split(raw)
        with self.directory(parent) as folder, _refusals():
            fd = os.open(name, flags | _FILE, dir_fd=folder)
        try:
            self._check_regular(os.fstat(fd))
            yield fd
        finally:
            os.close(fd)

    def facts(self, raw: bytes) -> os.stat_result:
        """What lstat says of a regular file beneath, readable or not. Raises `FileRefused`."""
        parent, name = _split(raw)
        with self.directory(parent) as folder, _refusals():
            result = os.stat(name, dir_fd=folder, follow_symlinks=False)
        self._check_regular(result)
        return result

    def write(self, raw: bytes, data: bytes) -> os.stat_result:
        """Put a whole file in place at once, with the directories it needs; return its facts."""
        parent, name = _split(raw)
        temporary = _TEMPORARY + secrets.token_hex(8).encode()
        with self.directory(parent, create=True) as folder, _refusals():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE
            fd = os.open(temporary, flags, self._mode_of(name, folder), dir_fd=folder)
            try:
                _write_all(fd, data)
                self._give(fd)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                return os.fstat(fd)
            except OSError:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            finally:
                os.close(fd)

    def append(self, raw: bytes, data: bytes) -> tuple[os.stat_result, os.stat_result]:
        """Add to a regular file that exists; return its facts before and after."""
        with self.file(raw, os.O_WRONLY | os.O_APPEND) as fd, _refusals():
            before = os.fstat(fd)
            _write_all(fd, data)
            return before, os.fstat(fd)

    def delete(self, raw: bytes) -> bool:
        """Remove one name that is no directory; False where there is none."""
        parent, name = _split(raw)
        try:
            with self.directory(parent) as folder, _refusals():
                os.unlink(name, dir_fd=folder)
        except FileRefused as refusal:
            if refusal.code == "not_found":
                return False
            raise
        return True

    def may_read(self, facts: os.stat_result) -> bool:
        """A regular file that is not a hard link to somebody else's."""
        return stat.S_ISREG(facts.st_mode) and (facts.st_nlink == 1 or facts.st_uid == self._uid)

    def _check_regular(self, facts: os.stat_result) -> None:
        if not self.may_read(facts):
            raise FileRefused("not_a_file", "not a regular file of the workspace")

    def _make_directory(self, name: bytes, folder: int) -> None:
        with suppress(FileExistsError), _refusals():
            os.mkdir(name, 0o755, dir_fd=folder)
            if os.geteuid() == 0:
                os.chown(name, self._uid, self._gid, dir_fd=folder, follow_symlinks=False)

    def _give(self, fd: int) -> None:
        if os.geteuid() == 0:
            os.fchown(fd, self._uid, self._gid)

    def _mode_of(self, name: bytes, folder: int) -> int:
        try:
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return 0o644
        return facts.st_mode & 0o777 if stat.S_ISREG(facts.st_mode) else 0o644


def _split(raw: bytes) -> tuple[bytes, bytes]:
    parent, _, name = raw.rpartition(b"/")
    return parent, name


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextmanager
def _refusals() -> Iterator[None]:
    """System errors as `FileRefused`; a name that exists already is the caller's business."""
    try:
        yield
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        raise FileRefused("not_found", "no such file") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):
            raise FileRefused("not_a_file", "not a regular file of the workspace") from error
        raise FileRefused("io_error", os.strerror(error.errno or errno.EIO)) from error
