"""Probabilities from a reranker's scores, and how well they are calibrated.

A score has no unit. Platt's sigmoid, fitted on problems of the dev split, turns it into the probability that the sample
passes. On the test split, samples with probability 0.7 should pass seven times in ten: reliability and the expected
calibration error measure how closely they do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rerankjax.results.statistics import Estimate, bootstrap, ratio_estimate

BINS = 10  # of equal width; with more, some would be empty in a small run
_STEPS = 100


@dataclass(frozen=True)
class Platt:
    """P(passes | score) = sigmoid(slope * score + intercept)."""

    slope: float
    intercept: float

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of the scores' shape, in (0, 1)."""
        return _sigmoid(self.slope * scores + self.intercept)


@dataclass(frozen=True, kw_only=True)
class Bin(Estimate):
    """The pass rate (value, low, high) of the samples whose probability lies in [start, start + 1 / BINS).

    `predicted` is their mean probability, `share` their fraction of all samples.
    """

    start: float
    predicted: float
    share: float


def fit_platt(passed: np.ndarray, scores: np.ndarray) -> Platt:
    """Platt's sigmoid (1999), found by Newton's method with backtracking (Lin, Lin and Weng 2007).

    Its targets are (c + 1) / (c + 2) for c correct and 1 / (i + 2) for i incorrect samples, not 1 and 0: the fit is
    then finite even if scores separate the two kinds, or if all samples are of one kind.

    Args:
      passed: bool, of the dev split.
      scores: of the same shape, finite, or NaN where a problem has fewer samples.
    """
    passed, scores = passed[~np.isnan(scores)], scores[~np.isnan(scores)]
    correct = passed.sum()
    target = np.where(passed, (correct + 1) / (correct + 2), 1 / (passed.size - correct + 2)).ravel()
    mean, spread = scores.mean(), scores.std() or 1.0
    x = np.stack([(scores.ravel() - mean) / spread, np.ones(scores.size)])
    weights = np.array([0.0, np.log(target.mean() / (1 - target.mean()))])

    def loss(weights: np.ndarray) -> float:
        z = weights @ x
        return float(np.sum(np.logaddexp(0, z) - target * z))

    for _ in range(_STEPS):
        p = _sigmoid(weights @ x)
        gradient = x @ (p - target)
        # With equal scores the slope's derivatives are 0; the small diagonal term then keeps the slope at 0.
        step = np.linalg.solve((x * (p * (1 - p))) @ x.T + 1e-9 * np.eye(2), gradient)
        if gradient @ step < 1e-12:
            break
        length = 1.0
        while length > 1e-6 and loss(weights - length * step) > loss(weights) - 1e-4 * length * (gradient @ step):
            length /= 2
        weights = weights - length * step
    slope = float(weights[0] / spread)
    return Platt(slope, float(weights[1] - slope * mean))


def reliability(passed: Sequence[np.ndarray], probabilities: Sequence[np.ndarray]) -> tuple[Bin, ...]:
    """The non-empty bins, from low to high, over the samples of all seeds, with equal weights for the seeds.

    Args:
      passed: bool [P, n] for every seed.
      probabilities: [P, n] for every seed, NaN where a problem has fewer samples.
    """
    of_seeds = [_by_bin(p, q) for p, q in zip(passed, probabilities, strict=True)]
    bins = []
    for b in range(BINS):
        count, predicted, correct = ([part[:, b] for part in parts] for parts in zip(*of_seeds, strict=True))
        if not any(part.any() for part in count):
            continue
        rate = ratio_estimate(correct, count)
        mean = ratio_estimate(predicted, count).value
        share = float(np.mean([c.sum() / np.isfinite(q).sum() for c, q in zip(count, probabilities, strict=True)]))
        bins.append(Bin(start=b / BINS, predicted=mean, share=round(share, 6), **vars(rate)))
    return tuple(bins)


def expected_calibration_error(passed: Sequence[np.ndarray], probabilities: Sequence[np.ndarray]) -> Estimate:
    """|mean probability - pass rate| of a bin, averaged over samples (Guo et al. 2017). Arguments as `reliability`.

    Noise alone keeps the error above 0, more so with fewer samples. Resampling adds noise, and the interval is
    corrected for that.
    """
    gaps = [(predicted - correct, count) for count, predicted, correct in map(_by_bin, passed, probabilities)]
    estimate = bootstrap([_gap_statistic(*g) for g in gaps], [len(p) for p in passed], centred=True)
    assert estimate is not None
    return estimate


def _gap_statistic(gap: np.ndarray, count: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def statistic(weights: np.ndarray) -> np.ndarray:
        gaps = np.abs(weights @ gap.astype(weights.dtype)).sum(1)
        return gaps / (weights @ count.sum(1).astype(weights.dtype))

    return statistic


def _by_bin(passed: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The number of samples, the sum of their probabilities, and the number of correct samples: [P, BINS] each."""
    of_bin = np.minimum(np.floor(probabilities * BINS), BINS - 1)[:, :, None] == np.arange(BINS)  # NaN is in no bin
    predicted = np.nan_to_num(probabilities)[:, :, None]
    return of_bin.sum(1), (of_bin * predicted).sum(1), (of_bin & passed[:, :, None]).sum(1)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))
