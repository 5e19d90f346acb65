"""Figures: summaries of samples, ratios to a peer, the tables that are printed, the files that are kept.

Everything is told as a median with its spread, because the machines that run this have other work
too. Next door: `rounds` takes the samples, `served` starts what is measured, `picture` draws.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from picture import Panel, draw
from processes import pinning

RESULTS = Path(__file__).parent / "results"


def summary(samples: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median, quartiles, extremes and 99th percentile of samples times `scale`."""
    scaled = sorted(sample * scale for sample in samples)
    rank = max(0, -(-len(scaled) * 99 // 100) - 1)
    return _spread(scaled) | {"p99": _round(scaled[rank]), "runs": len(scaled)}


def ratio(samples: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    """How many times a peer: of the medians, with the spread of the rounds' own ratios.

    Sample N of both comes from round N, so that what slowed a whole round down does not count.
    """
    of_medians = statistics.median(samples) / statistics.median(peer)
    by_round = sorted(one / other for one, other in zip(samples, peer, strict=True))
    return {"of_medians": _round(of_medians)} | _spread(by_round)


def difference(samples: Sequence[float], peer: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """How much more than a peer, round by round, times `scale`."""
    return _spread(sorted((one - other) * scale for one, other in zip(samples, peer, strict=True)))


def _spread(ordered: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes of sorted values; of one value all are the same."""
    quartiles = statistics.quantiles(ordered, method="inclusive") if len(ordered) > 1 else [*ordered] * 3
    figures = {
        "median": quartiles[1],
        "q1": quartiles[0],
        "q3": quartiles[2],
        "min": ordered[0],
        "max": ordered[-1],
    }
    return {name: _round(value) for name, value in figures.items()}


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    lines = [list(head), *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    print(f"\n{title}\n")
    for number, line in enumerate(lines):
        first, *others = line
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  " + "   ".join([first.ljust(widths[0]), *cells]))
        if number == 0:
            print("  " + "   ".join("-" * width for width in widths))


def save(name: str, result: Mapping[str, Any], *panels: Panel) -> None:
    """Keep the result with its machine in `results/<name>.json`, and `panels` beside it as a picture."""
    RESULTS.mkdir(exist_ok=True)
    kept = RESULTS / f"{name}.json"
    kept.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    drawn = kept.with_suffix(".svg")
    if panels:
        drawn.write_text(draw(name, panels))
    print(f"\nkept in bench/results/{kept.name}{f' and {drawn.name}' if panels else ''}")


def machine() -> dict[str, Any]:
    """What has to be known to read a figure."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "load1": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "pinning": pinning(),
    }


def _shown(cell: object) -> str:
    return f"{_round(cell):g}" if isinstance(cell, float) else str(cell)


def _round(value: float) -> float:
    """Four digits at most: no figure here is better than that."""
    return float(f"{value:.4g}")
