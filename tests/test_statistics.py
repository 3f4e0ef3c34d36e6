"""Intervals, a reranker's discrimination and calibration, and McNemar's test, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from rerankjax.results import calibration, statistics


def test_mean_interval_matches_the_normal_one() -> None:
    outcome = np.random.default_rng(1).random(400) < 0.4
    found = statistics.mean_estimate([outcome.astype(float)])
    error = outcome.std() / 20
    assert found.value == pytest.approx(outcome.mean(), abs=1e-6)
    assert found.low == pytest.approx(outcome.mean() - 1.96 * error, abs=0.004)
    assert found.high == pytest.approx(outcome.mean() + 1.96 * error, abs=0.004)


def test_a_seed_on_the_same_problems_adds_no_certainty_by_itself() -> None:
    outcome = np.random.default_rng(1).random(200)
    assert statistics.mean_estimate([outcome, outcome]) == statistics.mean_estimate([outcome])
    other = np.random.default_rng(2).random(200)
    one, two = statistics.mean_estimate([outcome]), statistics.mean_estimate([outcome, other])
    assert (two.high - two.low) / (one.high - one.low) == pytest.approx(math.sqrt(0.5), rel=0.1)


def test_seeds_weigh_the_same_whatever_their_problems() -> None:
    assert statistics.mean_estimate([np.ones(10), np.zeros(90)]).value == 0.5


def test_pairing_removes_what_problems_share() -> None:
    base = np.random.default_rng(0).random(300)
    found = statistics.mean_estimate([(base + 0.1) - base])
    assert (found.value, found.low, found.high) == (0.1, 0.1, 0.1)


def test_auc_by_hand() -> None:
    passed = np.array([[True, False], [True, False]])
    scores = np.array([[3.0, 1.0], [1.0, 2.0]])
    # Correct 3 and 1 against incorrect 1 and 2: wins 1, 1, 1/2, 0 of four.
    found = statistics.auc([passed], [scores])
    assert found is not None
    assert found.value == 0.625
    # Within problems: 3 > 1, not 1 > 2.
    pairwise = statistics.pairwise_accuracy([passed], [scores])
    assert pairwise is not None
    assert pairwise.value == 0.5


def test_auc_needs_comparable_scores_and_pairwise_accuracy_does_not() -> None:
    rng = np.random.default_rng(0)
    passed = rng.random((50, 6)) < 0.5
    scores = passed + 10 * rng.normal(size=(50, 1))
    auc, pairwise = statistics.auc([passed], [scores]), statistics.pairwise_accuracy([passed], [scores])
    assert auc is not None
    assert pairwise is not None
    assert pairwise.value == 1.0
    assert auc.value < 0.7
    assert auc.low < auc.value < auc.high


def test_a_problem_drawn_twice_counts_as_two() -> None:
    rng = np.random.default_rng(0)
    passed, scores = rng.random((6, 5)) < 0.5, rng.normal(size=(6, 5))
    drawn = np.array([0, 0, 0, 2, 3, 5])
    weights = np.bincount(drawn, minlength=6)[None] / 6
    for measured, statistic in (
        (statistics.auc, statistics._auc_statistic),
        (statistics.pairwise_accuracy, statistics._pairwise_statistic),
    ):
        expected = measured([passed[drawn]], [scores[drawn]])
        assert expected is not None
        assert statistic(passed, scores)(weights)[0] == pytest.approx(expected.value, abs=1e-6)


def test_discrimination_is_undefined_without_both_kinds() -> None:
    scores = np.zeros((3, 2))
    for passed in (np.zeros((3, 2), bool), np.ones((3, 2), bool)):
        assert statistics.auc([passed], [scores]) is None
        assert statistics.pairwise_accuracy([passed], [scores]) is None


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.104, "+", "+.104"),
        (-0.0131, "+", "-.013"),
        (0.6, "", ".600"),
        (1.0, "", "1.000"),
        (0.9996, "", "1.000"),
        (-0.0001, "+", ".000"),
        (0.0, "", ".000"),
        (-1.0, "+", "-1.000"),
    ],
)
def test_decimal(value: float, sign: str, text: str) -> None:
    assert statistics.decimal(value, sign) == text


@pytest.mark.parametrize(
    ("alone", "baseline_alone", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 32),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (3000, 0, 0.0),  # beyond what a float holds on the way
    ],
)
def test_mcnemar_by_hand(alone: int, baseline_alone: int, p: float) -> None:
    assert statistics.mcnemar(alone, baseline_alone) == pytest.approx(p, abs=1e-15)


def test_mcnemar_rejects_as_often_as_it_says() -> None:
    """Two equally good answers: of all splits, those with p <= .05 have at most that probability, and nearly."""
    n = 200
    rejected = sum(math.comb(n, i) for i in range(n + 1) if statistics.mcnemar(i, n - i) <= 0.05)
    assert 0.03 < rejected / 2**n <= 0.05


# Calibration


def test_platt_finds_the_sigmoid_that_made_the_samples() -> None:
    rng = np.random.default_rng(0)
    scores = 3 * rng.normal(size=(4000, 10)) + 50
    passed = rng.random(scores.shape) < 1 / (1 + np.exp(-(0.8 * scores - 41)))
    platt = calibration.fit_platt(passed, scores)
    assert platt.slope == pytest.approx(0.8, rel=0.03)
    assert platt.intercept == pytest.approx(-41, rel=0.03)
    # At the optimum the sums of predictions and targets agree, alone and weighted by the score.
    residual = platt.probabilities(scores) - passed
    assert abs(residual.mean()) < 1e-4
    assert abs((residual * (scores - 50)).mean()) < 1e-3


def test_platt_by_hand() -> None:
    # Two scores, so the sigmoid goes through the targets' means: 0 holds two incorrect, 1 a correct and an incorrect.
    passed, scores = np.array([[False, False, True, False]]), np.array([[0.0, 0.0, 1.0, 1.0]])
    platt = calibration.fit_platt(passed, scores)
    np.testing.assert_allclose(platt.probabilities(np.array([0.0, 1.0])), [1 / 5, (2 / 3 + 1 / 5) / 2], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_platt_is_finite_where_scores_separate_or_nothing_passes(scale: float) -> None:
    scores = scale * np.arange(12.0).reshape(3, 4)
    for passed in (scores > 5 * scale, np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        p = calibration.fit_platt(passed, scores).probabilities(scores)
        assert np.isfinite(p).all()
        assert (p[passed].min() if passed.any() else 1) > (p[~passed].max() if (~passed).any() else 0)
    same = calibration.fit_platt(scores > 5 * scale, np.full((3, 4), 7.0))
    assert same.slope == 0.0
    assert same.probabilities(np.array(7.0)) == pytest.approx(0.5)


def test_reliability_and_its_error_by_hand() -> None:
    passed = np.array([[True, True, False, False], [False, True, False, True]])
    probabilities = np.array([[0.95, 0.92, 0.91, 0.12], [0.14, 0.98, 0.11, 1.0]])
    low, high = calibration.reliability([passed], [probabilities])
    assert (low.start, low.share, low.value, high.start, high.share, high.value) == (0.1, 0.375, 0, 0.9, 0.625, 0.8)
    assert low.predicted == pytest.approx((0.12 + 0.14 + 0.11) / 3, abs=1e-6)
    assert high.predicted == pytest.approx((0.95 + 0.92 + 0.91 + 0.98 + 1.0) / 5, abs=1e-6)
    error = calibration.expected_calibration_error([passed], [probabilities])
    assert error.value == pytest.approx((0.37 + abs(4.76 - 4)) / 8, abs=1e-6)
    # Of two seeds, the error is the mean of theirs; the bins are of all their samples.
    both = [passed, ~passed], [probabilities, probabilities]
    assert calibration.expected_calibration_error(*both).value == pytest.approx(
        (error.value + (3 - 0.37 + abs(4.76 - 1)) / 8) / 2, abs=1e-6
    )
    assert [b.value for b in calibration.reliability(*both)] == [0.5, 0.5]


def test_a_perfect_forecast_has_hardly_an_error_and_a_bold_one_has() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((500, 8))
    passed = rng.random(p.shape) < p
    perfect = calibration.expected_calibration_error([passed], [p])
    assert perfect.value < 0.03
    assert (perfect.low + perfect.high) / 2 == pytest.approx(perfect.value, abs=0.002)  # resamples have noise twice
    bold = 1 / (1 + ((1 - p) / p) ** 3)
    found = calibration.expected_calibration_error([passed], [bold])
    assert found.low > 0.1
    for b in calibration.reliability([passed], [p]):
        assert b.low < b.predicted < b.high
