"""What is inside a sandbox on Modal: whose its processes and files are, and what the agent cannot do."""

import json
import shlex
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from agent_runtime.needs import Egress, SandboxNeeds
from agent_runtime.ports import Sandbox, SandboxSpec
from agent_runtime.testing.runner_talk import RUNTIME_ID, greeted, one_of, said, talking, with_agent
from agent_runtime_adapters.sandboxes.modal.sandbox import CONTROL, GATEWAY
from agent_runtime_sandbox.identity import RUNNER_UID
from agent_runtime_sandbox.image import HOME, UID, USER, WORKSPACE
from tests.adapters.sandboxes.modal_world import ModalWorld, modal_world, needs_users

pytestmark = needs_users

RUNNER = "$(cat /tmp/runner)"
TRUNKS = "for p in /proc/[0-9]*; do grep -qs 'sandbox.trun[k]' $p/cmdline"


async def as_agent(it: ModalWorld, sandbox: Sandbox, script: str) -> str:
    """What a program says that the agent might have started."""
    await it.inside(sandbox, f"cp {CONTROL}/runner.pid /tmp/runner; chmod 644 /tmp/runner")
    return await it.inside(sandbox, f"exec env -i PATH=/usr/bin:/bin sh -c {shlex.quote(script)}", user=USER)


async def test_the_runner_is_nobodys_and_works_as_the_agent() -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        status = await it.inside(sandbox, f"cat /proc/$(cat {CONTROL}/runner.pid)/status")
        facts = dict(line.split(":", 1) for line in status.splitlines())
        assert facts["Uid"].split()[:3] == [str(RUNNER_UID), str(UID), str(RUNNER_UID)]
        assert facts["Gid"].split()[:3] == [str(UID)] * 3
        assert facts["Groups"].split() == []
        assert {facts[name].strip() for name in ("CapPrm", "CapEff", "CapInh")} == {"0" * 16}
        assert facts["NoNewPrivs"].strip() == "1"


async def test_what_it_starts_is_the_agents_alone() -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox, talking(sandbox) as talk:
        await talk.command("start", driver="claude", options={"gatewayToken": "t"})
        said_of = await it.inside(
            sandbox,
            "grep -hE '^(Uid|Gid|Groups|CapPrm)' /proc/$(pgrep -x claude | head -1)/status",
        )
        facts = dict(line.split(":", 1) for line in said_of.splitlines())
        assert set(facts["Uid"].split()) == {str(UID)}
        assert set(facts["Gid"].split()) == {str(UID)}
        assert facts["Groups"].split() == []
        assert facts["CapPrm"].strip() == "0" * 16
        environment = await it.inside(sandbox, "tr '\\0' '\\n' < /proc/$(pgrep -x claude | head -1)/environ")
        names = {line.partition("=")[0] for line in environment.splitlines()}
        assert not [name for name in names if name.startswith("MODAL")]
        assert "PYTHONPATH" not in names


@pytest.mark.parametrize(
    "attempt",
    [
        f"kill -9 {RUNNER} && echo done",
        f"kill -STOP {RUNNER} && echo done",
        f"cat /proc/{RUNNER}/environ && echo done",
        f"cat /proc/{RUNNER}/mem >/dev/null && echo done",
        f"ls /proc/{RUNNER}/fd && echo done",
        f"ls {CONTROL} && echo done",
        f"cat {CONTROL}/journal && echo done",
        f"rm -f {GATEWAY} && echo done",
        "mv /run/agent-runtime/gateway /run/agent-runtime/mine && echo done",
        f"{TRUNKS} && kill -9 ${{p#/proc/}} && echo done; done",
        f"{TRUNKS} && cat $p/environ && echo done; done",
        "rmdir /workspace && echo done",
        "su -c id && echo done",
    ],
)
async def test_the_agent_does_nothing_to_the_runner(attempt: str) -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        assert "done" not in await as_agent(it, sandbox, attempt)
        assert (await greeted(sandbox))["k"] == "hello"


async def test_the_agent_cannot_speak_to_the_runner() -> None:
    code = f"import socket; socket.socket(socket.AF_UNIX).connect('{CONTROL}/runner.sock'); print('done')"
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        told = await as_agent(it, sandbox, f'python3 -c "{code}"')
        assert "done" not in told
        assert "PermissionError" in told


async def test_links_lead_the_runner_nowhere_where_the_agent_could_not_go() -> None:
    """Links to root's files and folders, of either kind."""
    prepared = f"""
        echo secret > /root/secret; chmod 600 /root/secret; mkdir -m 700 /root/folder
        ln /root/secret {WORKSPACE}/hard; ln -s /root/secret {WORKSPACE}/soft
        ln -s /root/folder {WORKSPACE}/linked; ln /root/secret {HOME}/agent-x
    """
    async with modal_world() as it, one_of(it.provider()) as sandbox, talking(sandbox) as talk:
        await it.inside(sandbox, prepared)
        for path in ("hard", "soft"):
            with pytest.raises(AssertionError, match=r"not_a_file|io_error"):
                await talk.command("read", path=path)
        with pytest.raises(AssertionError, match="not_a_file"):
            await talk.command("write", path="linked/x", data="eA==", append=False)
        with pytest.raises(AssertionError, match=r"not_a_file|io_error"):
            await talk.command("write", path="hard", data="eA==", append=True)
        await talk.command("write", path="hard", data="eA==", append=False)
        await talk.command("write", path="new/deep/file", data="eA==", append=False)
        told = await it.inside(
            sandbox,
            f"cat /root/secret; stat -c %u /root/secret /root/folder {WORKSPACE}/hard "
            f"{WORKSPACE}/new {WORKSPACE}/new/deep {WORKSPACE}/new/deep/file",
        )
        assert told.split() == ["secret", "0", "0", *[str(UID)] * 4]


async def test_secrets_reach_the_agent_and_nobody_else() -> None:
    needs = SandboxNeeds(env={"COLOUR": "teal"}, secrets=("TOKEN",), egress=Egress(hosts=("pypi.org",)))
    secret = "s3cret-of-a-profile"
    async with modal_world() as it:
        async with one_of(it.provider(), needs=needs, secrets={"TOKEN": secret}) as sandbox:
            async with talking(sandbox) as talk:
                await with_agent(talk)
                await talk.say("run import os, json; print(json.dumps(dict(os.environ)))", "m-1")
                frame = await talk.until(said("m-1"))
            told = json.dumps([frame, *talk.kept])
            assert secret in told
            assert "teal" in told
            assert "HTTPS_PROXY" in told
            assert "MODAL_" not in told
            seen = await as_agent(it, sandbox, "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; env")
            assert secret not in seen
        assert secret not in json.dumps(await it.local.sandboxes())


async def test_the_gateways_socket_is_reached_from_inside_and_answered_from_outside() -> None:
    """A request, several at once and one of a megabyte, each to its end; afterwards without a gateway."""
    ask = f"curl -s --max-time 20 --unix-socket {GATEWAY} http://x/"
    async with modal_world() as it, answering() as (spec, asked):
        sandbox = await it.provider().create(spec)
        try:
            script = f"for i in 1 2 3 4 5 6 7 8; do {ask}$i & done; wait"
            told = await as_agent(it, sandbox, script)
            assert sorted(told.split()) == [f"/{i}" for i in range(1, 9)]
            posted = "--data-binary @- -w ' %{http_code}'"
            long = f"head -c 3000000 /dev/zero | {ask}long {posted}"
            assert (await as_agent(it, sandbox, long)).endswith("200")
            assert asked["/long"] == 3_000_000
            other = await it.provider().attach(sandbox.ref, gateway_socket=spec.gateway_socket)
            assert (await greeted(other))["k"] == "hello"
            again = f"for i in 1 2 3 4 5 6 7 8; do {ask}again && break; sleep 0.5; done"
            assert (await as_agent(it, sandbox, again)).strip() == "/again"
            assert await sandbox.alive()
            spec.gateway_socket.unlink()
            assert await as_agent(it, sandbox, f"{ask}gone; echo $?") != "0"
        finally:
            await sandbox.stop()


@asynccontextmanager
async def answering() -> AsyncIterator[tuple[SandboxSpec, dict[str, int]]]:
    """A spec whose gateway says the path of each request; and how much each request held."""
    asked: dict[str, int] = {}

    async def answer(request: web.BaseRequest) -> web.Response:
        asked[request.path] = sum([len(piece) async for piece in request.content.iter_any()])
        return web.Response(text=f"{request.path}\n")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.sock"
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        try:
            yield SandboxSpec("session-1", RUNTIME_ID, path, orphan_timeout_s=300.0), asked
        finally:
            await runner.cleanup()


async def test_the_gateway_is_there_again_after_a_break_though_nobody_connects() -> None:
    async with modal_world() as it, answering() as (spec, asked):
        sandbox = await it.provider().create(spec)
        try:
            await it.local.data_path(up=False)
            await it.local.data_path(up=True)
            ask = f"curl -s --max-time 5 --unix-socket {GATEWAY} http://x/again"
            told = await as_agent(it, sandbox, f"for i in $(seq 60); do {ask} && break; sleep 0.5; done")
            assert told.strip() == "/again"
            assert asked == {"/again": 0}
        finally:
            await sandbox.stop()


async def test_requests_that_an_agent_leaves_open_lock_nobody_out() -> None:
    """Hundreds of connections to the gateway, none of them read: the runner is reached all the same."""
    flood = (
        "import socket, time\n"
        "held = []\n"
        "for _ in range(400):\n"
        "    s = socket.socket(socket.AF_UNIX); s.setblocking(False)\n"
        f"    try: s.connect('{GATEWAY}'); s.send(b'x' * 100_000)\n"
        "    except OSError: pass\n"
        "    held.append(s)\n"
        "print('held', flush=True); time.sleep(600)\n"
    )
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        held = f"python3 -c {shlex.quote(flood)} > /tmp/said 2>&1 & for i in $(seq 100); do "
        held += "grep -qs held /tmp/said && break; sleep 0.1; done; cat /tmp/said"
        assert "held" in await as_agent(it, sandbox, held)
        for _ in range(3):
            assert (await greeted(sandbox))["k"] == "hello"
