"""Rounds: every variant in every round, in an order that turns, after one that does not count."""

import itertools

import rounds
from rounds import order


def test_two_variants_come_first_and_last_alike() -> None:
    assert [order(["a", "b"], number) for number in range(4)] == [
        ["a", "b"],
        ["b", "a"],
        ["b", "a"],
        ["a", "b"],
    ]


def test_each_of_three_comes_first_and_after_each_of_the_others() -> None:
    turned = [order(["a", "b", "c"], number) for number in range(6)]
    assert sorted(one[0] for one in turned) == ["a", "a", "b", "b", "c", "c"]
    neighbours = {pair for one in turned for pair in itertools.pairwise(one)}
    assert neighbours == {("a", "b"), ("b", "a"), ("b", "c"), ("c", "b"), ("a", "c"), ("c", "a")}


async def test_the_samples_of_a_round_stand_at_its_number_and_the_warm_up_is_not_kept() -> None:
    clock = iter(range(100))

    async def once() -> int:
        return next(clock)

    samples = await rounds.rounds({"ours": once, "a peer": once}, 2)
    assert samples == {"ours": [2, 5], "a peer": [3, 4]}
