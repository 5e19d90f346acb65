"""The gate: this working tree beside another revision, interleaved; exit code 1 where it lost speed.

    make bench-gate                the branch beside main, or main beside its last commit's parent
    make bench-gate BASE=v1.2      beside any revision

Both run under this tree's benchmarks, each sample in a process of its own that finds the packages of
its revision. What is compared are costs (a benchmark's `gate`): processor time where there is one.
`judging` says what a loss is; everything else that is here is only told to be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

import fanout
import gateway
import pipeline
import start
import store
from figures import save, summary, table
from judging import Verdict, judge
from rounds import rounds

GATED: Mapping[str, Callable[[], Coroutine[None, None, dict[str, float]]]] = {
    "fanout": fanout.gate,
    "pipeline": pipeline.gate,
    "gateway": gateway.gate,
    "store": store.gate,
    "start": start.gate,
}
"""Each returns costs by name, in seconds, within some ten seconds."""
TREE = Path(__file__).resolve().parent.parent
PACKAGES = ("runtime", "adapters", "sandbox_image", "modal_local")
BASE, HEAD = "base", "this tree"
SAMPLE_S = 120.0
ROUNDS = 10

Costs = dict[str, float]


def base_revision(wanted: str | None) -> str:
    """What is compared with, as a commit's number."""
    names = [wanted] if wanted else ["main", "HEAD~1"]
    head = _git("rev-parse", "HEAD")
    for name in names:
        commit = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", may_fail=True)
        if commit and (wanted or commit != head):
            return commit
    raise SystemExit(f"no such revision: {' or '.join(names)}")


def unpack(revision: str, folder: Path) -> None:
    """Its files, without its history and without a trace in this tree's."""
    with subprocess.Popen(["git", "-C", str(TREE), "archive", revision], stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout, check=True)


async def sample(name: str, tree: Path) -> Costs | None:
    """One sample of a benchmark against a tree's packages; None where they do not fit together."""
    path = os.pathsep.join(str(tree / package) for package in PACKAGES)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--sample", name),
        env={**os.environ, "PYTHONPATH": path},
        stdout=PIPE,
    )
    try:
        async with asyncio.timeout(SAMPLE_S):
            said, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()
    if child.returncode:
        return None
    costs: Costs = json.loads(said.splitlines()[-1])
    return costs


async def compare(name: str, base: Path, count: int) -> dict[str, tuple[list[float], list[float]]]:
    """Costs of the base and of this tree by what was measured, sample N of both from round N."""
    trees = {BASE: base, HEAD: TREE}
    for which, tree in trees.items():
        if await sample(name, tree) is None:
            if which == HEAD:
                raise SystemExit(f"{name} cannot be measured on this tree")
            print(f"{name}: the base does not fit this tree's benchmark; not compared")
            return {}

    def once(tree: Path) -> Callable[[], Awaitable[Costs]]:
        async def one() -> Costs:
            costs = await sample(name, tree)
            if costs is None:
                raise SystemExit(f"{name} failed in the middle of its rounds")
            return costs

        return one

    taken = await rounds({which: once(tree) for which, tree in trees.items()}, count, warm_up=0)
    return {
        what: ([costs[what] for costs in taken[BASE]], [costs[what] for costs in taken[HEAD]])
        for what in taken[HEAD][0]
    }


async def measure(names: list[str], revision: str, count: int) -> dict[str, tuple[list[float], list[float]]]:
    """All that is gated, one benchmark after the other."""
    with TemporaryDirectory(prefix="agent-runtime-bench-gate-") as folder:
        unpack(revision, Path(folder))
        compared: dict[str, tuple[list[float], list[float]]] = {}
        for name in names:
            print(f"{name}: {count} rounds", flush=True)
            compared |= {
                f"{name}: {what}": both for what, both in (await compare(name, Path(folder), count)).items()
            }
        return compared


def tell(revision: str, compared: dict[str, tuple[list[float], list[float]]]) -> list[Verdict]:
    """Print and keep it; the verdicts."""
    verdicts = {what: judge(*both) for what, both in compared.items()}
    told = {
        what: {BASE: summary(base, 1000), HEAD: summary(head, 1000)}
        for what, (base, head) in compared.items()
    }
    table(
        f"Beside {revision[:12]}, ms",
        ["what", "base", HEAD, "ratio", "noise", ""],
        [
            [what, *(told[what][which]["median"] for which in (BASE, HEAD)), one.ratio, one.noise, one.words]
            for what, one in verdicts.items()
        ],
    )
    judged = {
        what: {**told[what], "ratio": one.ratio, "noise": one.noise, "verdict": one.words}
        for what, one in verdicts.items()
    }
    save("gate", {"unit": "ms", "base": revision, "compared": judged})
    return list(verdicts.values())


def _git(*arguments: str, may_fail: bool = False) -> str:
    done = subprocess.run(["git", "-C", str(TREE), *arguments], capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        raise SystemExit(done.stderr.strip())
    return done.stdout.strip()


def main(argv: list[str] | None = None) -> int:
    """Run it from the command line; `--sample` is how it starts its own processes."""
    parser = argparse.ArgumentParser(prog="gate", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GATED)} (default: all)")
    parser.add_argument("--base", help="the revision to compare with (default: main, or its parent)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--sample", choices=GATED, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.sample:
        print(json.dumps(uvloop.run(GATED[options.sample]())), flush=True)  # as a runtime is served
        return 0
    if unknown := set(options.names) - GATED.keys():
        parser.error(f"not gated: {', '.join(sorted(unknown))}")
    revision = base_revision(options.base)
    compared = asyncio.run(measure(options.names or list(GATED), revision, options.rounds))
    return 1 if any(verdict.lost for verdict in tell(revision, compared)) else 0


if __name__ == "__main__":
    sys.exit(main())
