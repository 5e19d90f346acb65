"""Confirm, in your own Modal account, what cannot be tested without one; one line for each thing.

    modal token new                    once
    pip install 'agent-runtime[modal]'
    python examples/modal_check.py     all checks, a few minutes and cents; or: modal_check.py network ends

It makes sandboxes in an app of its own (`agent-runtime-check`) and ends all of them. What each check
means is in docs/modal.md. `ok`: as we rely on it; `differs`: not so, please tell us; `skipped`: it
needs something that is named. The exit code is the number of checks that differ.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from shlex import quote
from typing import Any

import modal
import structlog
from modal import experimental
from modal.exception import NotFoundError

from agent_runtime.errors import SandboxFault
from agent_runtime.testing.runner_talk import Talk, gateway, greeted, said, talking, with_agent
from agent_runtime_adapters.sandboxes.modal import endings
from agent_runtime_adapters.sandboxes.modal.account import close_client
from agent_runtime_adapters.sandboxes.modal.options import ModalOptions
from agent_runtime_adapters.sandboxes.modal.provider import ModalSandboxes
from agent_runtime_adapters.sandboxes.modal.sandbox import ModalSandbox

APP = "agent-runtime-check"
STATUS = "cat /proc/$(cat /run/agent-runtime/control/runner.pid)/status"
FILES_TOLD = 100
"""A new runner tells of the files that it finds, and of nothing else."""
OUT = "python3 -c \"import socket; socket.create_connection(('1.1.1.1', 443), 5)\" && echo reached"


class Differs(Exception):
    """What was seen is not what we rely on."""


class Skipped(Exception):
    """It cannot be found out here; the text says what it takes."""


class Checks:
    """One sandbox with our runner, and plain ones beside it."""

    def __init__(self, provider: ModalSandboxes, sandbox: ModalSandbox) -> None:
        self.provider = provider
        self.sandbox = sandbox

    async def shell(self, script: str) -> str:
        """What root's shell says inside."""
        handle = await self.sandbox.handle()
        process = await handle.exec.aio("sh", "-c", f"exec 2>&1; {script}")
        return str(await process.stdout.read.aio())

    async def runner(self) -> str:
        """The image has our runner, and it greets."""
        began = time.monotonic()
        hello = await greeted(self.sandbox)
        return f"says hello (protocol {hello['v']}) after {time.monotonic() - began:.2f} s"

    async def users(self) -> str:
        """GVisor takes our three users: the runner's real and effective one, no privilege left."""
        facts = dict(line.split(":", 1) for line in (await self.shell(STATUS)).splitlines() if ":" in line)
        uids = facts.get("Uid", "").split()[:3]
        expect(uids == ["64444", "1000", "64444"], f"the runner's users are {uids}")
        expect(facts.get("CapEff", "0").strip("0 \t") == "", "the runner has capabilities")
        return "the runner is nobody's, and works as the agent"

    async def signals(self) -> str:
        """Nothing of the agent's reaches the runner: no signal, no trace, no socket."""
        pid = (await self.shell("cat /run/agent-runtime/control/runner.pid")).strip()
        script = quote(f"kill -9 {pid} && echo killed; ls /run/agent-runtime/control")
        told = await self.shell(f"setpriv --reuid=1000 --regid=1000 --clear-groups sh -c {script}")
        expect("killed" not in told and "runner.sock" not in told, "the agent's user reaches the runner")
        return "the agent's user neither signals the runner nor sees its folder"

    async def network(self) -> str:
        """`block_network` blocks; loopback works, or the relay would not."""
        expect("reached" not in await self.shell(OUT), "a sandbox without network reaches the internet")
        listening = "import socket; socket.create_server(('127.0.0.1', 0)); print('loopback')"
        expect("loopback" in await self.shell(f'python3 -c "{listening}"'), "there is no loopback")
        return "nothing is reached, and loopback is there"

    async def journal(self) -> str:
        """A hundred thousand lines come back from an offset: exec output is complete and in order."""
        async with talking(self.sandbox) as talk:
            await with_agent(talk)
            began = time.monotonic()
            await talk.say("lines 20000 500", "m-1")
            await talk.until(said("m-1"))
            seconds = time.monotonic() - began
            expect(in_order(talk), "lines are missing or doubled")
        return f"20,000 lines in order, 10 MB in {seconds:.1f} s"

    async def reattach(self) -> str:
        """Another provider finds it by its tags, and goes on; the older trunk gives way."""
        other = new_provider()
        try:
            with gateway() as spec:
                found = await other.attach(self.sandbox.ref, gateway_socket=spec.gateway_socket)
                hello = await greeted(found)
        finally:
            await other.close()
        return f"found by its id and tags, head {hello['head']}"

    async def snapshot(self) -> str:
        """Files come back; the runner's folder does not."""
        await self.shell("echo kept > /workspace/kept; chown agent /workspace/kept")
        began = time.monotonic()
        kept = await self.sandbox.snapshot()
        seconds = time.monotonic() - began
        try:
            async with one_more(self.provider, snapshot=kept) as again:
                told = await Checks(self.provider, again).shell(
                    "cat /workspace/kept; stat -c %U /workspace/kept"
                )
                expect(told.split() == ["kept", "agent"], f"the file is {told!r}")
                hello = await greeted(again)
                expect(hello["head"] < FILES_TOLD, "the journal came back")
        finally:
            await self.provider.forget(kept)
        return f"files and their owner are back; the snapshot took {seconds:.1f} s"

    async def memory(self) -> str:
        """What ends a sandbox for want of memory is told as that."""
        async with one_more(self.provider) as sandbox:
            hog = "python3 -c \"x = bytearray(32 * 2**30); x[::4096] = b'1' * len(x[::4096])\""
            await Checks(self.provider, sandbox).shell(f"{hog}; true")
            return f"alive {await sandbox.alive()}, mishap {mishap(await sandbox.mishap())}"

    async def ends(self) -> str:
        """How an idle end and the end of a lifetime show: status, exit code, open streams."""
        app = await modal.App.lookup.aio(APP, create_if_missing=True)
        handle = await modal.Sandbox.create.aio("sleep", "600", app=app, timeout=600, idle_timeout=20)
        try:
            process = await handle.exec.aio("sh", "-c", "echo one; sleep 5")
            await process.stdout.read.aio()
            code = await asyncio.wait_for(handle.wait.aio(raise_on_termination=False), 180)
            seen = endings.status(handle)
        finally:
            await handle.terminate.aio()
        expect(seen == "GENERIC_STATUS_IDLE_TIMEOUT", f"an idle end is {seen or 'not told'}")
        return f"an idle end is told, exit code {code}"

    async def streams(self) -> str:
        """How an open stream ends when its sandbox is terminated: by an error, or by its end."""
        async with one_more(self.provider) as sandbox, talking(sandbox) as talk:
            handle = await sandbox.handle()
            await handle.terminate.aio(wait=True)
            began = time.monotonic()
            try:
                await asyncio.wait_for(talk.until_it_ends(), 60)
                how = "by their end"
            except SandboxFault as fault:
                how = f"by {fault.code}"
            return f"open streams end {how} after {time.monotonic() - began:.1f} s"

    async def output(self) -> str:
        """How much output of a process is kept for a reader that comes late."""
        handle = await self.sandbox.handle()
        process = await handle.exec.aio("head", "-c", str(64 * 2**20), "/dev/zero", text=False)
        await asyncio.sleep(10)
        size = len(await process.stdout.read.aio())
        expect(size == 64 * 2**20, f"{size} of 64 MiB were there after ten seconds")
        return "64 MiB are kept for a late reader"

    async def stdin(self) -> str:
        """A process inside gets what is written in pieces, in order, to its end."""
        handle = await self.sandbox.handle()
        process = await handle.exec.aio("md5sum", text=False)
        for _ in range(64):
            process.stdin.write(b"x" * 2**16)
            await process.stdin.drain.aio()
        process.stdin.write_eof()
        await process.stdin.drain.aio()
        told = (await process.stdout.read.aio()).split()[0].decode()
        expect(told == "44981362d3ba9b5bacaf017c2f29d355", f"the digest of what arrived is {told}")
        return "4 MiB in 64 pieces arrive whole"

    async def allowlist(self) -> str:
        """A list of domains lets through what is on it, by name, and nothing else."""
        app = await modal.App.lookup.aio(APP, create_if_missing=True)
        handle = await modal.Sandbox.create.aio(
            "sleep", "300", app=app, timeout=300, outbound_domain_allowlist=["pypi.org"]
        )
        try:
            reach = "import urllib.request as u; print(u.urlopen('https://%s', timeout=10).status)"
            told = []
            for host in ("pypi.org", "example.com"):
                process = await handle.exec.aio("python3", "-c", reach % host)
                told.append((await process.stdout.read.aio()).strip())
        finally:
            await handle.terminate.aio()
        expect(told == ["200", ""], f"pypi.org and example.com answer {told}")
        return "pypi.org is reached, example.com is not"

    async def headers(self) -> str:
        """Headers are put in outside; it takes a Secret called agent-runtime-check with a CHECK in it."""
        secret = modal.Secret.from_name("agent-runtime-check", required_keys=["CHECK"])
        try:
            await secret.hydrate.aio()
        except NotFoundError as error:
            raise Skipped("modal secret create agent-runtime-check CHECK=any-word") from error
        policy = experimental.OutboundPolicy().with_header_replacement(
            domain="httpbin.org", secret=secret, headers={"X-Check": "$CHECK"}
        )
        app = await modal.App.lookup.aio(APP, create_if_missing=True)
        handle = await modal.Sandbox.create.aio(
            "sleep", "300", app=app, timeout=300, _experimental_outbound_policy=policy
        )
        try:
            ask = (
                "import urllib.request as u; print(u.urlopen('https://httpbin.org/headers').read().decode())"
            )
            process = await handle.exec.aio("python3", "-c", ask)
            told = await process.stdout.read.aio()
        finally:
            await handle.terminate.aio()
        expect("X-Check" in told, "no header was put in")
        return "a header is put in outside, its value was never inside"

    async def region(self) -> str:
        """A region that is asked for is where it runs."""
        provider = new_provider(regions=("us-east",))
        async with one_more(provider) as sandbox:
            told = (await Checks(provider, sandbox).shell("echo $MODAL_REGION $MODAL_CLOUD_PROVIDER")).strip()
        await provider.close()
        return f"asked for us-east, got {told or 'no word of it'}"


def expect(true: bool, otherwise: str) -> None:
    """Raises `Differs`."""
    if not true:
        raise Differs(otherwise)


def in_order(talk: Talk) -> bool:
    """Whether the offsets of what came have neither holes nor repeats."""
    offsets = [frame["o"] for frame in talk.kept]
    return offsets == list(range(offsets[0], offsets[0] + len(offsets)))


def mishap(fault: SandboxFault | None) -> str:
    """Its code."""
    return "none" if fault is None else fault.code


def new_provider(**options: Any) -> ModalSandboxes:
    """One that knows nothing yet."""
    return ModalSandboxes(ModalOptions(app=APP, lifetime_s=900, start_within_s=300, **options))


@asynccontextmanager
async def one_more(provider: ModalSandboxes, **changes: Any) -> AsyncIterator[ModalSandbox]:
    """A sandbox with our runner, ended whatever happens."""
    with gateway(runtime_id=APP) as spec:
        sandbox = await provider.create(replace(spec, **changes))
        assert isinstance(sandbox, ModalSandbox)
        try:
            yield sandbox
        finally:
            await sandbox.stop()


async def told(name: str, check: Callable[[], Awaitable[str]]) -> bool:
    """Run one check and print its line; False where it differs."""
    try:
        mark, text = "ok", await asyncio.wait_for(check(), 300)
    except Skipped as skipped:
        mark, text = "skipped", f"it needs: {skipped}"
    except Differs as differs:
        mark, text = "differs", str(differs)
    except Exception as error:
        mark, text = "differs", f"{type(error).__name__}: {error}"
    print(f"{mark:<8} {name:<10} {text}", flush=True)
    return mark != "differs"


NAMES = [name for name, value in vars(Checks).items() if not name.startswith("_") and name != "shell"]


async def main(names: Iterable[str]) -> int:
    """Run these checks in one sandbox; how many differ."""
    provider = new_provider()
    try:
        async with one_more(provider) as sandbox:
            checks = Checks(provider, sandbox)
            return sum([not await told(name, getattr(checks, name)) for name in names])
    except SandboxFault as fault:
        print(f"differs  sandbox    {fault.detail}")
        return 1
    finally:
        await provider.close()
        await close_client()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    sys.exit(asyncio.run(main(sys.argv[1:] or NAMES)))
