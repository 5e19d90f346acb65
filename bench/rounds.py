"""Rounds: variants and their peers in turn, so that a busy minute of the machine meets all of them alike.

    samples = await rounds({"ours": ours, "a peer": peer}, 10)

Each round runs every variant once, in an order that turns from round to round; the first rounds are not
counted: they fill caches. What a variant returns is its sample, of whatever kind; sample number N of each
variant comes from the same round N, which is what lets `figures.ratio` compare them round by round.
Next door: `figures` makes medians and ratios of samples, `processes` starts and pins what is measured.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

Sample = TypeVar("Sample")


def order(names: Sequence[str], number: int) -> list[str]:
    """The order of round `number`: turned by one every second round, and backwards in every other.

    So each variant comes first, last and after each of its neighbours about equally often; of two it
    makes A B, B A, B A, A B.
    """
    first = number // 2 % len(names) if names else 0
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 else turned


async def rounds(
    variants: Mapping[str, Callable[[], Awaitable[Sample]]], count: int, *, warm_up: int = 1
) -> dict[str, list[Sample]]:
    """Run `count` rounds after `warm_up` that are not counted; the samples of each variant by round."""
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for number in range(-warm_up, count):
        for name in order(list(variants), number):
            sample = await variants[name]()
            if number >= 0:
                samples[name].append(sample)
    return samples
