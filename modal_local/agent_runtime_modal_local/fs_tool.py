"""The filesystem calls of the SDK, as its own tool inside a real sandbox answers them.

This file is executed inside of a sandbox, alone, with one argument: `{"ReadFile": {"path": ...}}`. What
went wrong is told as JSON on stderr, with exit code 1. Watching is not there.
"""

import errno
import grp
import json
import os
import pwd
import shutil
import stat
import sys
from collections.abc import Callable
from typing import Any

KINDS = {
    errno.ENOENT: "NotFound",
    errno.EEXIST: "PathAlreadyExists",
    errno.ENOTDIR: "NotDirectory",
    errno.EISDIR: "IsDirectory",
    errno.EACCES: "PermissionDenied",
    errno.EPERM: "PermissionDenied",
    errno.ENOTEMPTY: "DirectoryNotEmpty",
}


def entry(path: str) -> dict[str, Any]:
    """What is told of one file."""
    found = os.lstat(path)
    link = stat.S_ISLNK(found.st_mode)
    kind = "directory" if stat.S_ISDIR(found.st_mode) else "file"
    told = {
        "name": os.path.basename(path.rstrip("/")) or "/",  # noqa: PTH119 - starts twice as fast without pathlib
        "path": path,
        "size": found.st_size,
        "mode": found.st_mode,
        "type": "symlink" if link else kind,
        "permissions": f"{stat.S_IMODE(found.st_mode):04o}",
        "owner": name(pwd.getpwuid, found.st_uid),
        "group": name(grp.getgrgid, found.st_gid),
        "modified_time": found.st_mtime,
    }
    if link:
        told["symlink_target"] = os.readlink(path)  # noqa: PTH115
    return told


def name(look_up: Callable[[int], Any], number: int) -> str:
    """The name of a user or a group, or the number."""
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)


def read_file(path: str) -> None:
    """Its bytes on stdout."""
    with open(path, "rb") as file:  # noqa: PTH123
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)


def write_file(path: str) -> None:
    """What comes on stdin takes the place of the file at once."""
    if os.path.isdir(path):  # noqa: PTH112
        raise IsADirectoryError(errno.EISDIR, "a folder is there")
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
    beside = f"{path}.tmp-{os.getpid()}"
    with open(beside, "wb") as file:  # noqa: PTH123
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    os.replace(beside, path)  # noqa: PTH105


def list_files(path: str) -> None:
    """One entry for each, sorted."""
    names = sorted(os.listdir(path))  # noqa: PTH208
    sys.stdout.write(json.dumps([entry(os.path.join(path, each)) for each in names]))  # noqa: PTH118


def tell(path: str) -> None:
    """One entry."""
    sys.stdout.write(json.dumps(entry(path)))


def make_directory(path: str, *, parents: bool = True) -> None:
    """Make it, with those above it or without."""
    if parents:
        os.makedirs(path, exist_ok=True)  # noqa: PTH103
    else:
        os.mkdir(path)  # noqa: PTH102


def remove(path: str, *, recursive: bool = False) -> None:
    """Remove a file, an empty folder, or a folder with all in it."""
    if os.path.islink(path) or not os.path.isdir(path):  # noqa: PTH112, PTH114
        os.remove(path)  # noqa: PTH107
    elif recursive:
        shutil.rmtree(path)
    else:
        os.rmdir(path)  # noqa: PTH106


COMMANDS: dict[str, Callable[..., None]] = {
    "ReadFile": read_file,
    "WriteFile": write_file,
    "ListFiles": list_files,
    "Stat": tell,
    "MakeDirectory": make_directory,
    "Remove": remove,
}


def main(argument: str) -> int:
    """Do one thing; the exit code."""
    ((command, arguments),) = json.loads(argument).items()
    if command not in COMMANDS:
        return fail("NotSupported", f"the local Modal does not know {command}")
    try:
        COMMANDS[command](**arguments)
        sys.stdout.flush()
    except OSError as error:
        return fail(KINDS.get(error.errno or 0, "Other"), error.strerror or "it failed")
    return 0


def fail(kind: str, message: str) -> int:
    """Say why."""
    sys.stderr.write(json.dumps({"version": 1, "error_kind": kind, "message": message}))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
