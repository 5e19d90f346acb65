"""Figures: summaries of samples, the tables that are printed, and the file that is kept.

Everything is told as a median with its extremes, because the machines that run this have other
work too. Next door: `served` starts what is measured; the other modules measure one thing each.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def summary(samples: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median, extremes and 99th percentile of samples times `scale`."""
    scaled = sorted(sample * scale for sample in samples)
    rank = max(0, -(-len(scaled) * 99 // 100) - 1)
    figures = {
        "median": statistics.median(scaled),
        "min": scaled[0],
        "max": scaled[-1],
        "p99": scaled[rank],
    }
    return {name: _round(value) for name, value in figures.items()} | {"runs": len(scaled)}


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


def save(name: str, result: dict[str, Any]) -> None:
    """Write the result, and what it was measured on, to `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    print(f"\nkept in bench/results/{file.name}")


def machine() -> dict[str, Any]:
    """What has to be known to read a figure."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "load1": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def _shown(cell: object) -> str:
    return f"{_round(cell):g}" if isinstance(cell, float) else str(cell)


def _round(value: float) -> float:
    """Four digits at most: no figure here is better than that."""
    return float(f"{value:.4g}")
