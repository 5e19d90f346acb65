"""All benchmarks, or those that are named: `python bench [NAME ...]`. What they mean is in README.md."""

from __future__ import annotations

import argparse

import bulk
import coalescing
import egress
import fanout
import gateway
import memory
import pipeline
import sandbox_start
import start
import store
from processes import cores_given_back

BENCHMARKS = {
    "fanout": fanout,
    "pipeline": pipeline,
    "coalescing": coalescing,
    "bulk": bulk,
    "start": start,
    "memory": memory,
    "store": store,
    "gateway": gateway,
    "egress": egress,
    "sandbox_start": sandbox_start,
}


def main() -> None:
    """Run them one after the other, with their own defaults."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := set(names) - BENCHMARKS.keys():
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    for name in names:
        print(f"\n== {name}", flush=True)
        with cores_given_back():
            BENCHMARKS[name].main([])


if __name__ == "__main__":
    main()
