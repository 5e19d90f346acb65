"""What the model gateway costs: a request and a streamed MiB through it, beside a direct connection.

The gateway runs in a process of its own, so that its processor time can be told from the client's
and the model's. A short answer shows what a request costs; long ones what bytes cost, in large
pieces and in pieces of a token's size, where each event is a write of the model. A third way is the
gateway for a session whose models are restricted, where each request is looked through for its model.
Next door `egress` measures what is no model's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import uvloop

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.needs import Egress
from figures import save, summary, table
from processes import cpu_seconds, process
from served import scripted_model

REQUESTS_A_RUN = 100
REQUEST_BYTES = 50_000
"""An agent's first request, with its tools and instructions, is about so long; it grows from there."""
MIB = 1024 * 1024
STREAMS = {
    "large pieces": f"[[script:big n={8 * MIB}]]",
    "token-sized pieces": "[[script:slow n=20000 delay=0]]",
}
DIRECT, THROUGH, GUARDED = "direct", "through the gateway", "the same, models restricted"


@dataclass
class Samples:
    """Of one way. Seconds; `cpu` is the gateway's own, a MiB or a request."""

    first_byte: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Way:
    """A way to the model."""

    client: aiohttp.ClientSession
    url: str

    async def ask(self, prompt: str, padding: int) -> tuple[float, float, int]:
        """Seconds to the first byte and to the last of a streamed answer, and its size."""
        body = {
            "model": "scripted",
            "max_tokens": 100,
            "stream": True,
            "system": "x" * padding,
            "messages": [{"role": "user", "content": prompt}],
        }
        size = 0
        began = time.perf_counter()
        first = 0.0
        async with self.client.post(f"{self.url}/v1/messages", json=body) as response:
            response.raise_for_status()
            async for piece in response.content.iter_any():
                first = first or time.perf_counter() - began
                size += len(piece)
        return first, time.perf_counter() - began, size


@asynccontextmanager
async def ways(model_url: str) -> AsyncIterator[tuple[dict[str, Way], int]]:
    """All ways to the model, and the gateway's process."""
    with TemporaryDirectory(prefix="agent-runtime-bench-gateway-") as folder:
        async with (
            process(sys.executable, __file__, "--serve", model_url, "--run-dir", folder) as (
                child,
                ready,
            ),
            aiohttp.ClientSession() as direct,
            AsyncExitStack() as stack,
        ):
            both = {DIRECT: Way(direct, model_url)}
            for name, endpoint in ready.items():
                connector = aiohttp.UnixConnector(endpoint["socket"])
                token = {"x-api-key": endpoint["token"]}
                client = aiohttp.ClientSession(connector=connector, headers=token)
                both[name] = Way(await stack.enter_async_context(client), "http://localhost")
            yield both, child.pid


async def measure(runs: int) -> tuple[dict[str, Samples], dict[str, dict[str, Samples]]]:
    """Requests, and streams by their kind; all ways in each round, in turning order."""
    requests: dict[str, Samples] = defaultdict(Samples)
    streams: dict[str, dict[str, Samples]] = {kind: defaultdict(Samples) for kind in STREAMS}
    async with scripted_model() as model_url, ways(model_url) as (both, gateway):
        for way in both.values():
            await _requests(way, gateway, Samples())
        for run in range(runs):
            for name, way in list(both.items())[:: 1 if run % 2 else -1]:
                await _requests(way, gateway, requests[name])
                for kind, prompt in STREAMS.items():
                    await _stream(way, gateway, prompt, streams[kind][name])
    return requests, streams


async def _requests(way: Way, gateway: int, into: Samples) -> None:
    spent = cpu_seconds(gateway)
    for _ in range(REQUESTS_A_RUN):
        first, whole, _ = await way.ask("[[script:text]]", REQUEST_BYTES)
        into.first_byte.append(first)
        into.whole.append(whole)
    into.cpu.append((cpu_seconds(gateway) - spent) / REQUESTS_A_RUN)


async def _stream(way: Way, gateway: int, prompt: str, into: Samples) -> None:
    spent = cpu_seconds(gateway)
    _, whole, size = await way.ask(prompt, 0)
    into.whole.append(whole / size * MIB)
    into.cpu.append((cpu_seconds(gateway) - spent) / size * MIB)


def tell(requests: dict[str, Samples], streams: dict[str, dict[str, Samples]]) -> dict[str, Any]:
    """Print it; return what is kept. Milliseconds."""
    told: dict[str, Any] = {"unit": "ms", "request": {}, "streamed_mib": {}}
    rows: list[list[object]] = []
    for name, samples in requests.items():
        parts = {"first_byte": samples.first_byte, "whole": samples.whole, "gateway_cpu": samples.cpu}
        told["request"][name] = figures = {part: summary(values, 1000) for part, values in parts.items()}
        first = figures["first_byte"]
        rows.append(
            [name, first["median"], first["p99"], *(figures[p]["median"] for p in ("whole", "gateway_cpu"))]
        )
    head = ["way", "first byte, median", "p99", "whole answer", "gateway's CPU"]
    table(f"One request of {REQUEST_BYTES // 1000} kB with a short answer, ms", head, sorted(rows, key=str))
    rows = []
    for kind, ways_ in streams.items():
        told["streamed_mib"][kind] = {}
        for name, samples in sorted(ways_.items()):
            figures = {"wall": summary(samples.whole, 1000), "gateway_cpu": summary(samples.cpu, 1000)}
            told["streamed_mib"][kind][name] = figures
            wall = figures["wall"]
            row = (wall["median"], wall["min"], wall["max"], figures["gateway_cpu"]["median"])
            rows.append([f"{kind}, {name}", *row])
    table("One streamed MiB, ms", ["way", "median", "min", "max", "gateway's CPU"], rows)
    return told


async def serve(model_url: str, run_dir: Path) -> None:
    """The gateway alone, until it is ended."""
    gateway = Gateway([Anthropic(model_url, api_key="sk-ant-bench")], run_dir)
    endpoints = {
        THROUGH: await gateway.open("bench"),
        GUARDED: await gateway.open("guarded", egress=Egress(models=("scripted",))),
    }
    told = {name: {"socket": str(one.socket), "token": one.token} for name, one in endpoints.items()}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main(argv: list[str] | None = None) -> None:
    """Run it from the command line; `--serve` is how it starts its own gateway."""
    parser = argparse.ArgumentParser(prog="gateway", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="rounds (default: 10)")
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as a served runtime has it
            runner.run(serve(options.serve, options.run_dir))
    else:
        save("gateway", tell(*asyncio.run(measure(options.runs))))


if __name__ == "__main__":
    main()
