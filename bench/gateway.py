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
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import uvloop

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.needs import Egress
from figures import ratio, save, summary, table
from picture import Bar, Panel
from processes import cpu_seconds, process
from rounds import rounds
from served import scripted_model

REQUESTS_A_RUN = 100
REQUEST_BYTES = 50_000
"""An agent's first request, with its tools and instructions, is about so long; it grows from there."""
MIB = 1024 * 1024
LARGE, SMALL = "large pieces", "token-sized pieces"
STREAMS = {
    LARGE: f"[[script:big n={8 * MIB}]]",
    SMALL: "[[script:slow n=20000 delay=0]]",
}
DIRECT, THROUGH, GUARDED = "direct", "through the gateway", "the same, models restricted"


@dataclass(frozen=True)
class Requests:
    """Seconds of each request; `cpu` is the gateway's own for one."""

    first_byte: list[float]
    whole: list[float]
    cpu: float


@dataclass(frozen=True)
class Stream:
    """Seconds for a MiB; `cpu` is the gateway's own."""

    whole: float
    cpu: float


@dataclass(frozen=True)
class Sample:
    """Of one way, in one round."""

    requests: Requests
    streams: dict[str, Stream]


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


async def measure(runs: int) -> dict[str, list[Sample]]:
    """A sample of each way by round."""
    async with scripted_model() as model_url, ways(model_url) as (all_ways, gateway):
        return await rounds({name: partial(once, way, gateway) for name, way in all_ways.items()}, runs)


async def once(way: Way, gateway: int) -> Sample:
    """Requests with short answers, then long answers of each kind."""
    requests = await ask_often(way, gateway)
    return Sample(requests, {kind: await stream(way, gateway, prompt) for kind, prompt in STREAMS.items()})


async def ask_often(way: Way, gateway: int) -> Requests:
    spent = cpu_seconds(gateway)
    taken = [await way.ask("[[script:text]]", REQUEST_BYTES) for _ in range(REQUESTS_A_RUN)]
    spent = (cpu_seconds(gateway) - spent) / REQUESTS_A_RUN
    return Requests([first for first, _, _ in taken], [whole for _, whole, _ in taken], spent)


async def stream(way: Way, gateway: int, prompt: str) -> Stream:
    spent = cpu_seconds(gateway)
    _, whole, size = await way.ask(prompt, 0)
    return Stream(whole / size * MIB, (cpu_seconds(gateway) - spent) / size * MIB)


async def gate() -> dict[str, float]:
    """What `gate` compares: the gateway's processor seconds for a request, and for a MiB of small pieces."""
    async with scripted_model() as model_url, ways(model_url) as (all_ways, gateway):
        await once(all_ways[THROUGH], gateway)
        sample = await once(all_ways[THROUGH], gateway)
    return {"CPU a request": sample.requests.cpu, "CPU a streamed MiB": sample.streams[SMALL].cpu}


def tell(samples: dict[str, list[Sample]]) -> tuple[dict[str, Any], list[Panel]]:
    """Print it; return what is kept and drawn. Milliseconds."""
    told: dict[str, Any] = {"unit": "ms", "request": {}, "streamed_mib": {}}
    rows: list[list[object]] = []
    bars: list[Bar] = []
    for name, of in samples.items():
        whole = [statistics.median(sample.requests.whole) for sample in of]
        direct = [statistics.median(sample.requests.whole) for sample in samples[DIRECT]]
        told["request"][name] = figures = {
            "first_byte": summary([each for sample in of for each in sample.requests.first_byte], 1000),
            "whole": summary([each for sample in of for each in sample.requests.whole], 1000),
            "gateway_cpu": summary([sample.requests.cpu for sample in of], 1000),
            "whole_to_direct": ratio(whole, direct),
        }
        first, cpu = figures["first_byte"], figures["gateway_cpu"]["median"]
        answers = figures["whole"]["median"], figures["whole_to_direct"]["of_medians"]
        rows.append([name, first["median"], first["p99"], *answers, cpu])
        bars.append(Bar.of(name, summary(whole, 1000), ours=name != DIRECT))
    head = ["way", "first byte, median", "p99", "whole answer", "x direct", "gateway's CPU"]
    table(f"One request of {REQUEST_BYTES // 1000} kB with a short answer, ms", head, rows)
    panels = [Panel("One request with a short answer, ms", bars)]
    return told, [*panels, *(tell_stream(kind, samples, told["streamed_mib"]) for kind in STREAMS)]


def tell_stream(kind: str, samples: dict[str, list[Sample]], told: dict[str, Any]) -> Panel:
    """One kind of long answers; milliseconds."""
    told[kind] = {}
    rows: list[list[object]] = []
    for name, of in samples.items():
        walls = [sample.streams[kind].whole for sample in of]
        told[kind][name] = figures = {
            "wall": summary(walls, 1000),
            "gateway_cpu": summary([sample.streams[kind].cpu for sample in of], 1000),
            "to_direct": ratio(walls, [sample.streams[kind].whole for sample in samples[DIRECT]]),
        }
        wall, cpu = figures["wall"], figures["gateway_cpu"]["median"]
        rows.append(
            [*(name, wall["median"], wall["min"], wall["max"]), figures["to_direct"]["of_medians"], cpu]
        )
    table(f"One streamed MiB, {kind}, ms", ["way", "median", "min", "max", "x direct", "gateway's CPU"], rows)
    bars = [Bar.of(name, figures["wall"], ours=name != DIRECT) for name, figures in told[kind].items()]
    return Panel(f"One streamed MiB, {kind}, ms", bars)


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
        told, panels = tell(asyncio.run(measure(options.runs)))
        save("gateway", told, *panels)


if __name__ == "__main__":
    main()
