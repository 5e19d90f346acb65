"""The way out of a real local sandbox, tried from inside with the tools that an agent has.

The agent, its shell, curl, pip, npm and git are the real ones, and so are TLS and the relay. Only the
names are a test's own: they point to servers on this machine, which no setting can make reachable.
"""

import hashlib
import io
import json
import ssl
import subprocess
import tarfile
import tempfile
import uuid
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.gateway.hosts import is_public
from agent_runtime.needs import Egress, SandboxNeeds
from agent_runtime.ports import Channel, GatewayEndpoint, SandboxSpec
from agent_runtime.testing.sandbox_contract import RUNTIME_ID
from agent_runtime.testing.script import Call, Say
from agent_runtime.testing.scripted_model import ScriptedModel
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_sandbox import frames
from tests.adapters.sandboxes.machine import needs_local_sandboxes, place

REAL_KEY = "sk-the-real-one"
NAMES = ("pypi.test", "npm.test", "git.test")
SAID = "agent-runtime-said:"


@dataclass
class TestNames:
    """Names of this machine's own servers, and of what nobody may reach."""

    __test__ = False
    points_to: dict[str, str] = field(
        default_factory=lambda: {
            **dict.fromkeys(NAMES, "127.0.0.1"),
            "loopback.test": "127.0.0.2",
            "metadata.test": "169.254.169.254",
        }
    )

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        return [self.points_to[host]] if host in self.points_to else []

    def may_go_to(self, address: str) -> bool:
        return is_public(address) or address == "127.0.0.1"

    def close(self) -> None:
        pass


@dataclass
class Registry:
    """A server with something for each tool, over TLS; `reached` are its requests."""

    port: int
    certificate: str
    reached: list[str]


@asynccontextmanager
async def registry(folder: Path) -> AsyncIterator[Registry]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = ",".join(f"DNS:{name}" for name in (*NAMES, "loopback.test", "metadata.test", "other.test"))
    _run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"),
        *("-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(certificate)),
    )
    files = _python_package() | _repository(folder) | {"/hello": b"hello from outside\n"}
    reached: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        reached.append(request.path)
        if request.path == "/tiny-npm":
            return web.json_response(_npm_metadata(request.host))
        if request.path == "/tiny-npm/-/tiny-npm-1.0.0.tgz":
            return web.Response(body=NPM_TARBALL)
        if request.path == "/simple/tiny-pip/":
            return web.Response(text=f'<a href="/{WHEEL}">{WHEEL}</a>', content_type="text/html")
        found = files.get(request.path)
        return web.Response(body=found) if found is not None else web.Response(status=404)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield Registry(runner.addresses[0][1], certificate.read_text(), reached)
    finally:
        await runner.cleanup()


WHEEL = "tiny_pip-1.0-py3-none-any.whl"


def _python_package() -> dict[str, bytes]:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as wheel:
        wheel.writestr("tiny_pip.py", "SAYS = 'pip got it'\n")
        info = "tiny_pip-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-pip\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "tiny_pip.py,,\n")
    return {f"/{WHEEL}": whole.getvalue()}


def _npm_tarball() -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, text in (
            ("package/package.json", '{"name": "tiny-npm", "version": "1.0.0", "main": "index.js"}'),
            ("package/index.js", "module.exports = 'npm got it'\n"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return whole.getvalue()


NPM_TARBALL = _npm_tarball()


def _npm_metadata(host: str) -> dict[str, Any]:
    dist = {
        "tarball": f"https://{host}/tiny-npm/-/tiny-npm-1.0.0.tgz",
        "shasum": hashlib.sha1(NPM_TARBALL).hexdigest(),
    }
    version = {"name": "tiny-npm", "version": "1.0.0", "dist": dist}
    return {"name": "tiny-npm", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}


def _repository(folder: Path) -> dict[str, bytes]:
    """A bare repository as plain files, which git reads from any server."""
    work, bare = folder / "work", folder / "repo.git"
    _run("git", "init", "-q", str(work))
    (work / "read.me").write_text("git got it\n")
    _run("git", "-C", str(work), "add", ".")
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    _run("git", "-C", str(work), *who, "commit", "-qm", "first")
    _run("git", "clone", "-q", "--bare", str(work), str(bare))
    _run("git", "-C", str(bare), "update-server-info")
    return {
        f"/repo.git/{path.relative_to(bare)}": path.read_bytes() for path in bare.rglob("*") if path.is_file()
    }


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass
class Shell:
    """The agent's shell in a sandbox of its own."""

    channel: Channel
    replies: list[list[Call | Say]]
    splitter: frames.LineSplitter = field(default_factory=frames.LineSplitter)

    async def run(self, script: str) -> dict[str, str]:
        """What the agent's Bash tool printed; each line `name=value` of its own."""
        call = Call("Bash", {"command": script, "description": "look around", "timeout": 100_000})
        self.replies[:] = [[call], [Say("done")]]
        lines = await self._turn(f"[[script:shell]] {uuid.uuid4()}")
        text = json.dumps(lines)
        assert REAL_KEY not in text
        results = [
            str(part.get("content"))
            for line in lines
            if line.get("type") == "user" and isinstance(line["message"]["content"], list)
            for part in line["message"]["content"]
            if part.get("type") == "tool_result"
        ]
        assert len(results) == 1
        told = [line.removeprefix(SAID) for line in results[0].splitlines() if line.startswith(SAID)]
        return dict(line.split("=", 1) for line in told)

    async def _turn(self, content: str) -> list[dict[str, Any]]:
        message = {"k": "message", "id": "2", "uuid": str(uuid.uuid4()), "content": content}
        await self.channel.send(frames.encode(message))
        lines: list[dict[str, Any]] = []
        while all(line.get("type") != "result" for line in lines):
            data = await self.channel.receive()
            assert data, "the runner is gone"
            for frame in map(frames.decode, self.splitter.feed(data)):
                assert frame.get("ok") is not False, frame
                if frame["k"] == "agent":
                    lines.append(frame["line"])
        return lines


@asynccontextmanager
async def shell(egress: Egress) -> AsyncIterator[tuple[Shell, Gateway, GatewayEndpoint]]:
    """An agent with these ways out, its model scripted behind the gateway."""
    replies: list[list[Call | Say]] = []
    with place() as root, tempfile.TemporaryDirectory() as folder:
        async with ScriptedModel({"shell": replies}) as model:
            vendor = Anthropic(model.url, api_key=REAL_KEY)
            gateway = Gateway([vendor], Path(folder) / "run", network=TestNames())
            endpoint = await gateway.open("session-1", egress=egress)
            needs = SandboxNeeds(egress=egress)
            sandbox = await LocalSandboxes(root).create(
                SandboxSpec("session-1", RUNTIME_ID, endpoint.socket, 60.0, needs=needs)
            )
            try:
                channel = await sandbox.connect()
                start = {
                    "k": "start",
                    "id": "1",
                    "driver": "claude",
                    "options": {"gatewayToken": endpoint.token},
                }
                for command in ({"k": "attach", "after": 0}, start):
                    await channel.send(frames.encode(command))
                yield Shell(channel, replies), gateway, endpoint
                await channel.close()
            finally:
                await sandbox.stop()
                await gateway.aclose()


def _say(name: str, command: str) -> str:
    """A line of shell: what a command prints, or the end of what it complains about."""
    return f"echo \"{SAID}{name}=$( {{ {command} ; }} 2>&1 | tail -n 1 | tr -d '\\r')\""


@asynccontextmanager
async def shell_and_registry(
    *names: str,
) -> AsyncIterator[tuple[Shell, Gateway, GatewayEndpoint, Registry]]:
    """An agent that may reach the registry by these names."""
    with tempfile.TemporaryDirectory() as folder:
        async with registry(Path(folder)) as outside:
            egress = Egress(hosts=tuple(f"{name}:{outside.port}" for name in names))
            async with shell(egress) as (inside, gateway, endpoint):
                yield inside, gateway, endpoint, outside


@needs_local_sandboxes
async def test_curl_pip_npm_and_git_reach_allowed_hosts_and_see_the_hosts_own_certificates() -> None:
    async with shell_and_registry(*NAMES) as (inside, _, _, outside):
        port = outside.port
        pip_install = "/tmp/v/bin/pip -q --disable-pip-version-check --cert /tmp/ca.pem install"
        npm_install = "npm install --silent --no-audit --no-fund --cafile /tmp/ca.pem"
        git_clone = "git -c http.sslCAInfo=/tmp/ca.pem clone -q"
        script = (
            f"cat > /tmp/ca.pem <<'END'\n{outside.certificate}END",
            _say("curl", f"curl -sS --cacert /tmp/ca.pem https://pypi.test:{port}/hello"),
            "python3 -m venv /tmp/v",
            f"{pip_install} --index-url https://pypi.test:{port}/simple tiny-pip",
            _say("pip", "/tmp/v/bin/python -c 'import tiny_pip; print(tiny_pip.SAYS)'"),
            f"mkdir /tmp/n; cd /tmp/n; {npm_install} --registry https://npm.test:{port}/ tiny-npm",
            _say("npm", "node -p 'require(\"tiny-npm\")'"),
            f"{git_clone} https://git.test:{port}/repo.git /tmp/cloned",
            _say("git", "cat /tmp/cloned/read.me"),
        )
        told = await inside.run("\n".join(script))
    assert told == {
        "curl": "hello from outside",
        "pip": "pip got it",
        "npm": "npm got it",
        "git": "git got it",
    }


@needs_local_sandboxes
async def test_nothing_else_is_reached_from_inside() -> None:
    """Other names, this machine's loopback, a cloud's metadata, a neighbour's way out, the open network."""
    names = ("pypi.test", "loopback.test", "metadata.test")
    with structlog.testing.capture_logs() as logs:
        async with shell_and_registry(*names) as (inside, gateway, mine, outside):
            port = outside.port
            other = await gateway.open("session-2", egress=Egress(hosts=(f"git.test:{port}",)))
            curl = "curl -sS -k --max-time 5 -o /dev/null -w '%{http_connect} %{http_code}\\n'"
            ask = f"{curl} -X POST -d '{{}}' http://127.0.0.1:3128/v1/messages -H x-api-key:"
            script = (
                _say("allowed", f"{curl} https://pypi.test:{port}/hello"),
                _say("another_host", f"{curl} https://git.test:{port}/hello"),
                _say("another_port", f"{curl} https://pypi.test:22/"),
                _say("loopback", f"{curl} https://loopback.test:{port}/hello"),
                _say("metadata", f"{curl} https://metadata.test:{port}/latest"),
                _say("address", f"{curl} --noproxy '' https://127.0.0.1:{port}/hello"),
                _say("plain_http", f"{curl} http://pypi.test:{port}/hello"),
                _say("plain_metadata", f"{curl} http://169.254.169.254/latest"),
                _say("past_the_proxy", f"{curl} --noproxy '*' https://127.0.0.1:{port}/hello"),
                _say("no_route", f"{curl} --noproxy '*' https://8.8.8.8/"),
                _say("no_names", "getent hosts pypi.test || echo unknown"),
                _say("own_token", f"{ask}{mine.token}"),
                _say("neighbours_token", f"{ask}{other.token}"),
                _say("sockets", "find /run -type s | tr '\\n' ' '"),
                _say("neighbours_socket", f"curl -s --unix-socket {other.socket} http://x/ || echo none"),
            )
            told = await inside.run("\n".join(script))
        decided = [entry for entry in logs if entry["event"] == "egress_decided"]
    assert told == {
        "allowed": "200 200",
        "another_host": "403 000",
        "another_port": "403 000",
        "loopback": "403 000",
        "metadata": "403 000",
        "address": "403 000",
        "plain_http": "000 403",
        "plain_metadata": "000 403",
        "past_the_proxy": "000 000",
        "no_route": "000 000",
        "no_names": "unknown",
        "own_token": "000 400",  # which is the model's own word on an empty request
        "neighbours_token": "000 401",
        "sockets": "/run/agent-runtime/s ",
        "neighbours_socket": "none",
    }
    assert outside.reached == ["/hello"]
    assert {entry["decision"] for entry in decided} == {
        *("allowed", "not_allowed", "not_public", "malformed", "not_a_tunnel")
    }
    assert {entry["session_id"] for entry in decided} == {"session-1"}
    assert REAL_KEY not in str(logs)


@needs_local_sandboxes
async def test_without_hosts_tools_are_told_of_no_proxy_and_there_is_no_way_out() -> None:
    async with shell(Egress()) as (inside, gateway, _):
        ask = "curl -sS --max-time 5 -o /dev/null -w '%{http_connect}\\n' -p -x $AGENT_RUNTIME_RELAY"
        look = "\n".join(
            (
                _say("proxy", "env | grep -ci _proxy"),
                _say("relay", "echo $AGENT_RUNTIME_RELAY"),
                _say("connect", f"{ask} https://pypi.test/"),
            )
        )
        assert await inside.run(look) == {"proxy": "0", "relay": "http://127.0.0.1:3128", "connect": "403"}
        # What a profile allows later on counts at once, also for a sandbox that was made before.
        await gateway.open("session-1", egress=Egress(hosts=("pypi.test:1",)))
        later = await inside.run(_say("connect", f"{ask} https://pypi.test:1/"))
        assert later == {"connect": "502"}, "it is allowed, and nobody listens there"


async def test_the_names_of_a_test_are_out_of_reach_of_settings(tmp_path: Path) -> None:
    """The network of a gateway that comes from the environment is the public internet, whatever is set."""
    environ = {"AGENT_RUNTIME_NETWORK": "any", "NETWORK": "any", "ANTHROPIC_API_KEY": "k"}
    gateway = Gateway.from_environment(tmp_path / "run", environ=environ)
    assert not gateway._network.may_go_to("127.0.0.1")
    await gateway.aclose()
