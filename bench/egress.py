"""What a tunnel costs: a connection and a MiB through the gateway, and through the relay before it.

The host that is reached lies on this machine and answers with as many bytes as it is asked for; it, the
gateway and the relay are processes of their own. Beside them: the same host, connected to directly.
No TLS, which all ways pay alike, and no names: the host's address is known to the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import uvloop

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.needs import Egress
from agent_runtime_sandbox.door import Door
from agent_runtime_sandbox.relay import Relay
from figures import ratio, save, summary, table
from picture import Bar, Panel
from processes import cpu_seconds, process
from rounds import rounds

CONNECTIONS_A_RUN = 100
MIB = 1024 * 1024
STREAM_BYTES = 64 * MIB
NAME = "host.bench"
DIRECT, TUNNEL, RELAYED = "direct", "through the gateway", "through relay and gateway"


PARTS = {"connection": "A connection with a short answer", "mib": "A MiB"}


@dataclass(frozen=True)
class Sample:
    """Of one way, in one round. Seconds; `cpu` is the gateway's own for a MiB."""

    connections: list[float]
    mib: float
    cpu: float


@dataclass(frozen=True)
class Way:
    """A way to the host: a unix socket or a port, and whether a tunnel is asked for."""

    at: str | int
    tunnel_to: str | None

    async def fetch(self, size: int) -> float:
        """Connect, ask for so many bytes, read them all; the seconds it took."""
        began = time.perf_counter()
        if isinstance(self.at, str):
            reader, writer = await asyncio.open_unix_connection(self.at, limit=MIB)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.at, limit=MIB)
        if self.tunnel_to is not None:
            writer.write(f"CONNECT {self.tunnel_to} HTTP/1.1\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head:
                raise SystemExit(head.decode())
        writer.write(b"%d\n" % size)
        got = 0
        while data := await reader.read(MIB):
            got += len(data)
        took = time.perf_counter() - began
        writer.close()
        if got != size:
            raise SystemExit(f"{got} bytes came, not {size}")
        return took


class OneHost:
    """A network with one name in it, which leads to this machine."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"] if (host, port > 0) == (NAME, True) else []

    def may_go_to(self, address: str) -> bool:
        return address == "127.0.0.1"

    def close(self) -> None:
        """Nothing is held."""


async def serve_host() -> None:
    """Answer each connection with as many bytes as its first line says."""
    piece = bytes(256 * 1024)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = int(await reader.readline())
        while left > 0:
            writer.write(piece[:left])
            await writer.drain()
            left -= len(piece)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    await _say_and_stay({"port": server.sockets[0].getsockname()[1]})


async def serve_gateway(port: int, run_dir: Path) -> None:
    """The gateway alone, for a session that may reach the host."""
    gateway = Gateway([Anthropic()], run_dir, network=OneHost())
    endpoint = await gateway.open("bench", egress=Egress(hosts=(f"{NAME}:{port}",)))
    await _say_and_stay({"socket": str(endpoint.socket)})


async def serve_relay(socket: Path) -> None:
    """The relay alone, as the runner in a sandbox has it."""
    door = Door(0)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Relay(door, socket).run())
        await _say_and_stay({"port": urlsplit(door.url).port})


async def _say_and_stay(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


@asynccontextmanager
async def ways() -> AsyncIterator[tuple[dict[str, Way], int]]:
    """All ways to the host, and the gateway's process."""
    this = (sys.executable, __file__, "--serve")
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="agent-runtime-bench-egress-"))
        _, host = await stack.enter_async_context(process(*this, "host"))
        port = host["port"]
        serving = process(*this, "gateway", "--port", str(port), "--path", folder)
        gateway, told = await stack.enter_async_context(serving)
        _, relay = await stack.enter_async_context(process(*this, "relay", "--path", told["socket"]))
        wanted = f"{NAME}:{port}"
        yield (
            {
                DIRECT: Way(port, None),
                TUNNEL: Way(told["socket"], wanted),
                RELAYED: Way(relay["port"], wanted),
            },
            gateway.pid,
        )


async def measure(runs: int) -> dict[str, list[Sample]]:
    """A sample of each way by round."""
    async with ways() as (all_ways, gateway):
        return await rounds({name: partial(once, way, gateway) for name, way in all_ways.items()}, runs)


async def once(way: Way, gateway: int) -> Sample:
    """Many connections, then many bytes."""
    connections = [await way.fetch(100) for _ in range(CONNECTIONS_A_RUN)]
    spent = cpu_seconds(gateway)
    mib = await way.fetch(STREAM_BYTES) / STREAM_BYTES * MIB
    return Sample(connections, mib, (cpu_seconds(gateway) - spent) / STREAM_BYTES * MIB)


def tell(samples: dict[str, list[Sample]]) -> tuple[dict[str, Any], list[Panel]]:
    """Print it; return what is kept and drawn. Milliseconds."""
    told: dict[str, Any] = {"unit": "ms"}
    rows: list[list[object]] = []
    panels = {part: Panel(f"{title}, ms", []) for part, title in PARTS.items()}
    for name, of in samples.items():
        connections = [seconds for sample in of for seconds in sample.connections]
        parts = {"connection": connections, "mib": [sample.mib for sample in of]}
        told[name] = figures = {part: summary(values, 1000) for part, values in parts.items()}
        figures["gateway_cpu_mib"] = summary([sample.cpu for sample in of], 1000)
        figures["mib_to_direct"] = ratio(parts["mib"], [sample.mib for sample in samples[DIRECT]])
        rows.append(
            [
                *(name, figures["connection"]["median"], figures["connection"]["p99"]),
                *(figures["mib"]["median"], figures["mib_to_direct"]["of_medians"]),
                figures["gateway_cpu_mib"]["median"],
            ]
        )
        for part, panel in panels.items():
            panel.bars.append(Bar.of(name, figures[part], ours=name != DIRECT))
    head = ["way", "connection with a short answer", "p99", "a MiB", "x direct", "gateway's CPU a MiB"]
    table("A host beside the gateway, ms", head, rows)
    return told, list(panels.values())


def main(argv: list[str] | None = None) -> None:
    """Run it from the command line; `--serve` is how it starts its own processes."""
    parser = argparse.ArgumentParser(prog="egress", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="rounds (default: 10)")
    parser.add_argument("--serve", choices=("host", "gateway", "relay"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    match options.serve:
        case "host":
            asyncio.run(serve_host())
        case "gateway":
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as a served runtime has it
                runner.run(serve_gateway(options.port, options.path))
        case "relay":
            asyncio.run(serve_relay(options.path))
        case _:
            told, panels = tell(asyncio.run(measure(options.runs)))
            save("egress", told, *panels)


if __name__ == "__main__":
    main()
