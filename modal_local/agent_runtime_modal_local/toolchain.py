"""The Python that is inside: `/opt/agent-runtime/bin/python`, at the place where a real image has it.

It is the interpreter that runs this server, with the packages of its environment, laid out as a
virtual environment at neutral places: read-only, and without a path of this machine. Beside it lies
the tool by which the SDK's filesystem calls work.
"""

from __future__ import annotations

import shlex
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

INSIDE: Final = PurePosixPath("/opt/agent-runtime")
PYTHON: Final = str(INSIDE / "bin" / "python")
FS_TOOL: Final = "/__modal/.bin/modal-sandbox-fs-tools"
SYSTEM: Final = Path("/usr")


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Read-only mounts, as pairs of a path here and a path inside, in their order."""

    mounts: tuple[tuple[Path, str], ...]


def lay_out(stage: Path) -> Toolchain:
    """Write the little that has to be written below `stage`, and say what is to be mounted where."""
    prefix = Path(sys.base_prefix).resolve()
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    packages = Path(sysconfig.get_path("purelib"))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    opt, modal = stage / "opt", stage / "modal"
    in_usr = prefix.is_relative_to(SYSTEM)
    real = executable if in_usr else INSIDE / "python" / executable.relative_to(prefix)
    (opt / "bin").mkdir(parents=True)
    (opt / "bin" / "python3").symlink_to(real)
    (opt / "pyvenv.cfg").write_text(
        f"home = {real.parent}\ninclude-system-site-packages = {str(sys.prefix == sys.base_prefix).lower()}\n"
    )
    _write_launcher(opt / "bin" / "python", in_usr=in_usr)
    # Each by itself: an image may have files of its own beside them.
    mounts = [(opt / name, str(INSIDE / name)) for name in ("bin", "pyvenv.cfg")]
    if not in_usr:
        mounts.append((prefix, str(INSIDE / "python")))
    if not packages.is_relative_to(SYSTEM):
        mounts.append((packages.resolve(), str(INSIDE / "lib" / version / "site-packages")))
    mounts.append((_write_fs_tool(modal), "/__modal"))
    return Toolchain(tuple(mounts))


def _write_launcher(path: Path, *, in_usr: bool) -> None:
    """A link, or where the interpreter's library has to be found a script that says where."""
    if in_usr or not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        path.symlink_to("python3")
        return
    library = shlex.quote(str(INSIDE / "python" / "lib"))
    path.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={library} exec {INSIDE}/bin/python3 "$@"\n')
    path.chmod(0o755)


def _write_fs_tool(modal: Path) -> Path:
    tool = modal / ".bin" / PurePosixPath(FS_TOOL).name
    tool.parent.mkdir(parents=True)
    source = Path(__file__).with_name("fs_tool.py").read_text()
    tool.write_text(f"#!{PYTHON} -IS\n{source}")
    tool.chmod(0o755)
    return modal
