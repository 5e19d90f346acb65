"""A profile's packages brought into a folder of this machine, without running a line of their code.

One function for each registry. pip and npm are this machine's own, told where the registries are as it
is for everybody here and nothing else of the user's settings; what they say goes no further than a
sentence, because it holds addresses and paths. apt installs nothing here: what it would bring is in
the system or is missing. Where the folders lie and how long is the business of `dependencies`.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from agent_runtime.errors import SandboxFault
from agent_runtime_adapters.sandboxes.toolchain import Toolchain
from agent_runtime_sandbox.image import NPM_INSTALL, NPM_REGISTRY_ONLY, PIP_INSTALL

INSTALL_WITHIN_S: Final = 900.0
ASK_WITHIN_S: Final = 60.0
SAID_BYTES: Final = 64 * 1024
"""How much of what an installer says is looked at: the end of it."""

MOST_BYTES: Final = 4 * 1024**3
"""Of the packages of one registry for one profile."""

_PASSED_ON: Final = (
    *("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
"""What an installer gets of the runtime's environment; no key of the runtime's is among it."""
_PIP_REGISTRY: Final = (
    *("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "cert", "client-cert"),
    *("proxy", "timeout", "default-timeout", "keyring-provider"),
)
"""What counts of pip's settings: where packages come from."""
_NPM_REGISTRY: Final = re.compile(
    r"npm_config_(.*registry|.*_auth(token)?|(no|https?_)?proxy|ca(file)?|strict_ssl|(user|global)config|fetch_.*)",
    re.IGNORECASE,
)

_UNREACHABLE: Final = re.compile(
    "Failed to establish a new connection|Max retries exceeded|ConnectTimeout|Name or service not known"
    "|Temporary failure in name resolution|Connection refused|ReadTimeout|ProxyError"
    "|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ENOTCACHED"
)
_PIP_UNKNOWN: Final = re.compile(r"No matching distribution found for ([A-Za-z0-9][\w.,<>=!~\[\]-]*)")
_PIP_CONFLICT: Final = re.compile("ResolutionImpossible|conflicting dependencies")
_NPM_UNKNOWN: Final = re.compile(r"npm (?:error|ERR!) code (?:E404|ETARGET|EALLOW\w+)")
_NPM_CODE: Final = re.compile(r"npm (?:error|ERR!) code ([A-Z0-9]{2,20})")


async def install_python(
    folder: Path, held: int, *, packages: tuple[str, ...], toolchain: Toolchain, seen_at: str
) -> None:
    """Make an environment of Python with these packages, for the interpreter that runs inside.

    `held` is a descriptor that stays open as long as the installer runs, whatever becomes of us;
    `seen_at` is where the folder lies for its users. Raises `SandboxFault`.
    """
    library = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    library.mkdir(parents=True)
    # It tells of a registry that does not answer only when it tries again.
    command = [sys.executable, "-I", "-m", "pip", *PIP_INSTALL, "--no-warn-script-location", "--retries=2"]
    code, said = await _run(
        [*command, "--target", str(library), *packages], await _pip_environment(), folder, held
    )
    if code != 0:
        raise _failed("pip", said, _pip_sentence(said))
    scripts = folder / "bin"
    if (library / "bin").is_dir():
        (library / "bin").rename(scripts)
    scripts.mkdir(exist_ok=True)
    _point_to(f"{seen_at}/bin/python3", scripts)
    await asyncio.to_thread(seal, folder)
    _place_interpreter(folder, toolchain, seen_at)


async def install_node(folder: Path, held: int, *, packages: tuple[str, ...]) -> None:
    """Install packages of npm into `node_modules`; `held` as above. Raises `SandboxFault`."""
    npm = shutil.which("npm")
    if npm is None:
        raise missing("npm is not installed on this machine: `apt-get install npm`.")
    environment = _passed_on() | {k: v for k, v in os.environ.items() if _NPM_REGISTRY.fullmatch(k)}
    cache = folder / ".cache"  # a service's user may have no home to keep one in
    flags = ("--location=project", "--install-links=false", "--loglevel=error", "--logs-max=0")
    command = [npm, *NPM_INSTALL, *NPM_REGISTRY_ONLY, *flags, f"--cache={cache}", f"--prefix={folder}"]
    code, said = await _run([*command, *packages], environment, folder, held)
    if code != 0:
        raise _failed("npm", said, _npm_sentence(said))
    await asyncio.to_thread(shutil.rmtree, cache, ignore_errors=True)
    await asyncio.to_thread(seal, folder)


async def check_system(packages: tuple[str, ...]) -> None:
    """See that packages of the distribution are installed. Raises `SandboxFault` (`dependency_missing`)."""
    if shutil.which("dpkg-query") is None:
        raise missing(
            f"{', '.join(packages)}: apt packages can only be had on Debian and its kin, or on Modal."
        )
    names = [package.partition("=")[0] for package in packages]
    command = ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${db:Status-Status}\n", *names]
    _, said = await _run(command, _passed_on(), Path("/"), None, within_s=ASK_WITHIN_S)
    rows = [line.split() for line in said.splitlines()]
    installed = {row[0]: row[1] for row in rows if row[2:] == ["installed"]}
    absent = [package for package in packages if not _is_there(package, installed)]
    if absent:
        raise missing(f"Not installed on this machine: `apt-get install {' '.join(absent)}`.")


def missing(detail: str) -> SandboxFault:
    """Something that only this machine's operator can bring."""
    return SandboxFault(detail, code="dependency_missing", retryable=False)


def _is_there(package: str, installed: Mapping[str, str]) -> bool:
    name, _, version = package.partition("=")
    found = installed.get(name.partition(":")[0])
    return found is not None and version in {"", found}


def _point_to(python: str, scripts: Path) -> None:
    """Scripts name the interpreter that installed them, which lies elsewhere inside."""
    mine = sys.executable.encode()
    for script in scripts.iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        content = script.read_bytes()
        if content.startswith(b"#!"):
            head, newline, rest = content.partition(b"\n")
            if mine not in head:  # too long for a first line: the second one names it then
                second, more, rest = rest.partition(b"\n")
                head, newline = head + newline + second, more
            script.write_bytes(head.replace(mine, python.encode()) + newline + rest)


def _place_interpreter(folder: Path, toolchain: Toolchain, seen_at: str) -> None:
    """What makes the folder an environment of its own: Python looks beside the name it was called by."""
    home = PurePosixPath(toolchain.python).parent
    version = ".".join(map(str, sys.version_info[:3]))
    settings = folder / "pyvenv.cfg"
    settings.write_text(f"home = {home}\ninclude-system-site-packages = false\nversion = {version}\n")
    settings.chmod(0o644)
    scripts = folder / "bin"
    (scripts / ".python").symlink_to(toolchain.python)
    for name in ("python3", "python"):
        (scripts / name).unlink(missing_ok=True)
        libraries = toolchain.env.get("LD_LIBRARY_PATH")
        if libraries is None:
            (scripts / name).symlink_to(".python")
        else:
            (scripts / name).write_text(
                f'#!/bin/sh\nexport LD_LIBRARY_PATH={libraries}\nexec {seen_at}/bin/.python "$@"\n'
            )
            (scripts / name).chmod(0o755)


def seal(folder: Path) -> None:
    """Let any uid read what was installed. Raises `SandboxFault` for what is too much or leads out of it."""
    top, size = folder.resolve(), 0
    for path in _below(folder):
        found = path.lstat()
        mode, size = found.st_mode, size + found.st_size
        if size > MOST_BYTES:
            raise SandboxFault("The packages are too large.", code="dependencies_failed", retryable=False)
        if stat.S_ISLNK(mode):
            if not path.resolve().is_relative_to(top):
                raise _refused("holds links that lead out of it")
        elif stat.S_ISDIR(mode):
            path.chmod(0o755)
        elif stat.S_ISREG(mode):
            path.chmod(0o755 if mode & stat.S_IXUSR else 0o644)
        else:
            raise _refused("holds what is neither a file nor a folder")
    folder.chmod(0o755)


def _refused(why: str) -> SandboxFault:
    return SandboxFault(f"One of the packages {why}.", code="dependencies_failed", retryable=False)


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(parent) / name


def _passed_on() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


async def _pip_environment() -> dict[str, str]:
    """The registries that pip is set up to use here, from its files and variables, as variables alone."""
    asked = _passed_on() | {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    command = [sys.executable, "-I", "-m", "pip", "config", "list"]
    code, said = await _run(command, asked, Path("/"), None, within_s=ASK_WITHIN_S)
    if code != 0:
        raise missing("pip is not installed for the interpreter that the runtime runs on.")
    told = _passed_on() | {"PIP_CONFIG_FILE": os.devnull}
    for section in ("global", "install", ":env:"):  # the later one wins, as in pip itself
        for key, value in re.findall(rf"^{re.escape(section)}\.([a-z-]+)=(.*)$", said, re.MULTILINE):
            if key in _PIP_REGISTRY:
                told[f"PIP_{key.upper().replace('-', '_')}"] = " ".join(str(ast.literal_eval(value)).split())
    return told


async def _run(
    argv: list[str],
    env: Mapping[str, str],
    cwd: Path,
    held: int | None,
    *,
    within_s: float = INSTALL_WITHIN_S,
) -> tuple[int, str]:
    """Run a program to its end: its exit code and the end of what it said. Raises `SandboxFault`."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            pass_fds=() if held is None else (held,),
            umask=0o022,
        )
    except OSError as error:
        detail = "This machine could not start what installs packages."
        raise SandboxFault(detail, code="dependencies_failed") from error
    assert process.stdout is not None
    said = b""
    try:
        async with asyncio.timeout(within_s):
            while piece := await process.stdout.read(SAID_BYTES):
                said = (said + piece)[-SAID_BYTES:]
            return await process.wait(), said.decode(errors="replace")
    except TimeoutError as error:
        detail = "The packages of the profile took too long to install."
        raise SandboxFault(detail, code="dependencies_failed") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _failed(installer: str, said: str, sentence: str) -> SandboxFault:
    if _UNREACHABLE.search(said):
        detail = f"{installer}: the registry cannot be reached from this machine."
        return SandboxFault(detail, code="dependencies_failed")
    return SandboxFault(f"{installer}: {sentence}", code="dependencies_failed", retryable=False)


def _pip_sentence(said: str) -> str:
    if unknown := _PIP_UNKNOWN.search(said):
        return f"there is no wheel of {unknown[1][:100]} for this Python."
    if _PIP_CONFLICT.search(said):
        return "the packages ask for versions that exclude each other."
    return "the packages could not be installed."


def _npm_sentence(said: str) -> str:
    if _NPM_UNKNOWN.search(said):
        return "a package, or that version of it, is not in the registry."
    if code := _NPM_CODE.search(said):
        return f"the packages could not be installed ({code[1]})."
    return "the packages could not be installed."
