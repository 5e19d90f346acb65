"""Judging: whether a revision lost against another, told from noise. Pure.

A figure is a cost: seconds, or processor seconds; less is better. Both revisions gave one in each
round, so their ratio is taken round by round. The median of these ratios is what is judged; how far
it may lie from the truth is told by their own spread, as a box plot's notch does: 1.57 times the
distance of the quartiles, over the root of the number of rounds, is its 95 % interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ALLOWED = 0.10
"""A loss beyond noise that is still passed."""
_NOTCH = 1.57


@dataclass(frozen=True)
class Verdict:
    """`ratio` of the new cost to the old one, give or take `noise`."""

    ratio: float
    noise: float

    @property
    def lost(self) -> bool:
        """Whether even the lucky end of the interval is a loss of more than is allowed."""
        return self.ratio - self.noise > 1 + ALLOWED

    @property
    def vague(self) -> bool:
        """Whether a loss of just more than is allowed could have hidden in the noise."""
        return not self.lost and self.ratio + self.noise > 1 + ALLOWED

    @property
    def words(self) -> str:
        """The last column of the table."""
        return "LOST" if self.lost else "passed, but noisy" if self.vague else "passed"


def judge(base: Sequence[float], head: Sequence[float]) -> Verdict:
    """Compare costs of the same rounds; at least two of each."""
    by_round = [new / old for old, new in zip(base, head, strict=True)]
    first, middle, third = statistics.quantiles(by_round, method="inclusive")
    return Verdict(middle, _NOTCH * (third - first) / math.sqrt(len(by_round)))
