"""Judging: a real loss fails, noise does not, and a noisy pass says that it is one."""

import random

import pytest

from judging import judge

STEADY = [1.00, 1.01, 0.99, 1.02, 0.98, 1.00, 1.01, 0.99]


def test_a_revision_against_itself_passes() -> None:
    verdict = judge(STEADY, STEADY[::-1])
    assert verdict.words == "passed"
    assert verdict.ratio == pytest.approx(1, abs=0.02)


def test_a_loss_of_a_quarter_fails() -> None:
    assert judge(STEADY, [cost * 1.25 for cost in STEADY]).words == "LOST"


def test_a_loss_within_ten_per_cent_passes() -> None:
    assert not judge(STEADY, [cost * 1.05 for cost in STEADY]).lost


def test_a_gain_passes_however_large() -> None:
    assert judge(STEADY, [cost / 3 for cost in STEADY]).words == "passed"


def test_rounds_that_were_slow_for_both_do_not_count() -> None:
    busy = [cost * slow for cost, slow in zip(STEADY, [1, 5, 1, 1, 3, 1, 2, 1], strict=True)]
    assert judge(busy, [cost * 1.25 for cost in busy]).words == "LOST"


def test_one_bad_round_is_no_loss() -> None:
    assert not judge(STEADY, [*STEADY[:-1], 9.0]).lost


def test_a_small_loss_in_great_noise_is_passed_and_said_to_be_noisy() -> None:
    verdict = judge([1.0] * 8, [0.7, 1.6, 0.9, 1.5, 0.8, 1.4, 1.1, 1.3])
    assert verdict.words == "passed, but noisy"


def test_noise_alone_hardly_ever_fails() -> None:
    chance = random.Random(5)

    def costs() -> list[float]:
        return [chance.lognormvariate(0, 0.2) for _ in range(8)]

    assert sum(judge(costs(), costs()).lost for _ in range(200)) <= 12
