"""The runner's command line: where it listens, where its journal is, when it gives up.

A provider that can passes descriptors (`--listen-fd`, `--journal-fd`), so that nothing inside the
sandbox has a name for them; another, which starts it as root, names the user that the agent is to
be (`--user`) and gives paths in a folder that this user cannot enter (`identity`).

The order of its imports is deliberate: whoever waits for an agent has it started before the runner's
own modules are imported (`drivers.early`).
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    # To look through what imports make, which stays, again and again takes a tenth of their time.
    gc.disable()

import argparse
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from agent_runtime_sandbox import drivers, frames, identity, process
from agent_runtime_sandbox.door import Door
from agent_runtime_sandbox.drivers import Places


class _Begun(NamedTuple):
    """What is there before the runner is: `caller` is connected already, `door` leads to the gateway."""

    listener: socket.socket
    journal: int
    places: Places
    door: Door | None
    caller: socket.socket | None


def main() -> int:
    """Run until told to end. Returns the exit code."""
    process.harden()
    options = _parser().parse_args()
    listener, journal = _listener(options), _journal(options)
    places, door = _places(options), _door(options)
    signal.signal(signal.SIGTERM, _end_at_once)
    try:
        with listener:
            caller, early = drivers.begin_early(options.preload, listener, places)
            _serve(options, _Begun(listener, journal, places._replace(early=early), door, caller))
    finally:
        process.end_leftovers()
    return 0


def _end_at_once(*_: object) -> NoReturn:
    """Until the runner itself listens for SIGTERM: an agent that was started early must not outlive this.

    No exception: while something is imported there are places in which one gets lost.
    """
    process.end_leftovers()
    os._exit(0)


def _serve(options: argparse.Namespace, begun: _Begun) -> None:
    # Here, and not above: an agent that was started early sets itself up meanwhile.
    import asyncio  # noqa: PLC0415
    import logging  # noqa: PLC0415

    from agent_runtime_sandbox.manifest import Rules  # noqa: PLC0415
    from agent_runtime_sandbox.relay import Relay  # noqa: PLC0415
    from agent_runtime_sandbox.runner import Runner, Settings  # noqa: PLC0415

    if begun.places.early is not None:
        # Somebody waits for it, and for nothing else: beside a loop that serves it takes half as long again.
        with suppress(drivers.DriverError, ImportError):  # the start that needs it tells
            drivers.load(options.preload)
    gc.freeze()
    gc.enable()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="runner: %(message)s")
    door, gateway = begun.door, begun.places.gateway

    async def run() -> None:
        settings = Settings(
            places=begun.places,
            orphan_timeout_s=options.orphan_timeout,
            rules=Rules(options.ignore, options.max_file_bytes, options.max_files),
            preload=options.preload,
            lifetime_s=options.lifetime,
            disk_bytes=options.disk_bytes,
            relay=Relay(door, gateway) if door is not None and gateway is not None else None,
        )
        await Runner(begun.listener, begun.journal, settings, caller=begun.caller).run()

    asyncio.run(run())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agent_runtime_sandbox", description="Owns the agent in a sandbox.")
    listen = parser.add_mutually_exclusive_group(required=True)
    listen.add_argument("--listen-fd", type=int, metavar="N", help="a listening unix socket")
    listen.add_argument("--listen", type=Path, metavar="PATH", help="make the listening unix socket here")
    journal = parser.add_mutually_exclusive_group(required=True)
    journal.add_argument("--journal-fd", type=int, metavar="M", help="a file opened for reading and writing")
    journal.add_argument("--journal", type=Path, metavar="PATH", help="make the journal's file here")
    parser.add_argument("--user", metavar="NAME", help="started as root: work as this user, and so the agent")
    parser.add_argument("--orphan-timeout", type=float, required=True, metavar="S", help="seconds alone")
    parser.add_argument("--lifetime", type=float, metavar="S", help="end after so many seconds")
    parser.add_argument("--disk-bytes", type=int, metavar="N", help="end when workspace and home take more")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="NAME", help="directories not to report; a pattern"
    )
    parser.add_argument("--max-file-bytes", type=int, default=2**25, metavar="N", help="read no larger file")
    parser.add_argument("--max-files", type=int, default=100_000, metavar="N", help="report no more files")
    parser.add_argument("--relay", type=int, metavar="PORT", help="a TCP address for the gateway; 0: any")
    parser.add_argument("--proxy", action="store_true", help="tell tools to leave by the relay")

    parser.add_argument("--env-fd", type=int, metavar="E", help="JSON: variables for the agent and its tools")
    parser.add_argument(
        "--agent", action="append", default=[], type=_binary, metavar="DRIVER=PATH", help="what it starts"
    )
    parser.add_argument("--preload", default="claude", metavar="DRIVER", help="import it early; empty: none")
    return parser


def _binary(told: str) -> tuple[str, Path]:
    driver, _, path = told.partition("=")
    return driver, Path(path)


def _places(options: argparse.Namespace) -> Places:
    """Where the agent works, and as whom; with a user this process gives up being root here."""
    gateway = os.environ.get(frames.GATEWAY_ENV)
    workspace, home = Path(os.environ[frames.WORKSPACE_ENV]), Path(os.environ[frames.HOME_ENV])
    variables = _variables(options.env_fd)
    if options.user is not None:
        variables = identity.settle(options.user, workspace, home)
    return Places(
        workspace=workspace,
        home=home,
        gateway=Path(gateway) if gateway else None,
        binaries=dict(options.agent),
        env=variables,
        user=options.user,
    )


def _door(options: argparse.Namespace) -> Door | None:
    """The relay's address, which whatever is started here is told of by its environment. Raises `OSError`."""
    if options.relay is None or not os.environ.get(frames.GATEWAY_ENV):
        return None
    door = Door(options.relay)
    os.environ.update(door.environment(proxy=options.proxy))
    return door


def _variables(descriptor: int | None) -> dict[str, str]:
    """What the agent is to have and this process is not: its own environment shows in /proc."""
    if descriptor is None:
        return {}
    with open(descriptor, "rb") as told:  # noqa: PTH123 - a descriptor, not a path
        variables: dict[str, str] = json.load(told)
    return variables


def _listener(options: argparse.Namespace) -> socket.socket:
    if options.listen_fd is not None:
        listener = socket.socket(fileno=options.listen_fd)
    else:
        if options.user is not None:
            identity.own_folder(options.listen.parent, identity.RUNNER_UID, identity.RUNNER_UID, 0o700)
            (options.listen.parent / identity.RUNNER_PID).write_text(str(os.getpid()), encoding="ascii")
        options.listen.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(options.listen))
        finally:
            os.umask(mask)
        listener.listen()
        if options.user is not None:
            os.chown(options.listen, identity.RUNNER_UID, identity.RUNNER_UID)
    listener.set_inheritable(False)
    return listener


def _journal(options: argparse.Namespace) -> int:
    if options.journal_fd is not None:
        fd: int = options.journal_fd
        os.set_inheritable(fd, False)
        return fd
    return os.open(options.journal, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


if __name__ == "__main__":
    sys.exit(main())
