"""Figures: what is told of samples, and how they compare with a peer's of the same rounds."""

import pytest

from figures import difference, ratio, summary


def test_samples_are_told_with_their_spread() -> None:
    told = summary([0.001, 0.002, 0.003, 0.004, 0.010], 1000)
    assert told == {"median": 3, "q1": 2, "q3": 4, "min": 1, "max": 10, "p99": 10, "runs": 5}


def test_one_sample_is_its_own_spread() -> None:
    assert summary([2.0]) == {"median": 2, "q1": 2, "q3": 2, "min": 2, "max": 2, "p99": 2, "runs": 1}


def test_a_round_that_was_slow_for_both_leaves_the_ratio_alone() -> None:
    told = ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert told == {"of_medians": 2, "median": 2, "q1": 2, "q3": 2, "min": 2, "max": 2}


def test_our_own_share_is_taken_round_by_round() -> None:
    told = difference([0.5, 1.5, 0.7], [0.4, 1.3, 0.4], 1000)
    assert (told["median"], told["min"], told["max"]) == (200, 100, 300)


def test_rounds_that_do_not_pair_are_no_ratio() -> None:
    with pytest.raises(ValueError, match="longer"):
        ratio([1.0], [1.0, 2.0])
