"""Bootstrap intervals over problems, for fractions, paired differences and a reranker's discrimination.

Problems are resampled within each seed, and the seeds are averaged with equal weights. Seeds with equally many problems
are resampled at the same indices: if seeds share their problems, a problem's difficulty then counts as drawn once, not
once per seed; otherwise the shared indices change nothing. The intervals cover other problems of this family, not other
training runs; for training runs, compare the seeds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

RESAMPLES = 5_000

# Maps weights over problems [R, P], whose rows sum to 1, to R values; equal weights give the estimate itself.
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def text(self, sign: str = "") -> str:
        """`.632 [.594, .669]`; with sign "+" as for differences, `+.104 [+.071, +.137]`."""
        return f"{decimal(self.value, sign)} [{decimal(self.low, sign)}, {decimal(self.high, sign)}]"


def decimal(value: float, sign: str = "") -> str:
    """Three decimals without the leading zero, as papers print fractions: .632, -.013, 1.000."""
    text = f"{value:{sign}.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:{sign}.3f}"
    return ".000" if text.strip("+-") == ".000" else text


@lru_cache(maxsize=16)  # one entry per number of problems, which differs by language
def _resamples(problems: int) -> np.ndarray:
    draws = np.random.default_rng(0).integers(problems, size=(RESAMPLES, problems))
    flat = (draws + problems * np.arange(RESAMPLES)[:, None]).ravel()
    counts = np.bincount(flat, minlength=RESAMPLES * problems).reshape(RESAMPLES, problems)
    return (counts / problems).astype(np.float32)


def bootstrap(statistics: Sequence[Statistic], sizes: Sequence[int], centred: bool = False) -> Estimate | None:
    """The mean over seeds of each seed's statistic over `sizes` problems; None if the mean is undefined.

    centred: subtract the resamples' mean offset from the interval, for a statistic that noise biases upwards.
    """
    with np.errstate(invalid="ignore"):
        value = np.mean([f(np.full((1, p), 1 / p))[0] for f, p in zip(statistics, sizes, strict=True)])
        if np.isnan(value):
            return None
        replicates = np.mean([f(_resamples(p)) for f, p in zip(statistics, sizes, strict=True)], axis=0)
    low, high = np.nanpercentile(replicates, [2.5, 97.5]) - (np.nanmean(replicates) - value if centred else 0.0)
    return _rounded(float(value), float(low), float(high))


def mean_estimate(outcomes: Sequence[np.ndarray]) -> Estimate:
    """The mean of one value per problem, [P] for every seed; for a paired difference, each problem's difference."""
    if not outcomes or any(o.ndim != 1 or o.size == 0 or not np.isfinite(o).all() for o in outcomes):
        raise ValueError("outcomes must be one finite [problems] array for every seed, with at least one problem")
    estimate = bootstrap([_mean_statistic(o) for o in outcomes], [o.size for o in outcomes])
    assert estimate is not None
    return estimate


def ratio_estimate(numerators: Sequence[np.ndarray], denominators: Sequence[np.ndarray]) -> Estimate:
    """The sum of the numerators divided by that of the denominators, which is not 0; both [P] for every seed."""

    def ratio(weights: Sequence[np.ndarray]) -> np.ndarray:
        over = sum(w @ n.astype(w.dtype) for w, n in zip(weights, numerators, strict=True))
        under = sum(w @ d.astype(w.dtype) for w, d in zip(weights, denominators, strict=True))
        return np.asarray(over / under)

    with np.errstate(invalid="ignore"):
        value = ratio([np.full((1, len(d)), 1 / len(d)) for d in denominators])[0]
        low, high = np.nanpercentile(ratio([_resamples(len(d)) for d in denominators]), [2.5, 97.5])
    return _rounded(value, low, high)


def mcnemar(better_alone: int, baseline_alone: int) -> float:
    """The two-sided p-value of McNemar's exact test (1947) on paired outcomes.

    If both are equally good, each problem that only one of them solves is solved by either with probability 1/2.
    """
    n = better_alone + baseline_alone
    tail = sum(math.comb(n, i) for i in range(min(better_alone, baseline_alone) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def _rounded(value: float, low: float, high: float) -> Estimate:
    # Six decimals are far below the noise and keep the results file readable.
    return Estimate(value=round(float(value), 6), low=round(float(low), 6), high=round(float(high), 6))


def _mean_statistic(outcome: np.ndarray) -> Statistic:
    return lambda weights: weights @ outcome.astype(weights.dtype)


def auc(passed: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> Estimate | None:
    """The probability that a random correct sample of the split outscores a random incorrect one; ties count half.

    Args:
      passed: bool [P, n] for every seed.
      scores: [P, n] for every seed. AUCs are averaged over seeds; scores of different seeds are never compared. NaN
        where a problem has fewer samples than n.

    Returns:
      The AUC, or None if a seed lacks correct or incorrect samples.
    """
    statistics = [_auc_statistic(p, s) for p, s in zip(passed, scores, strict=True)]
    return bootstrap(statistics, [len(p) for p in passed])


def _auc_statistic(passed: np.ndarray, scores: np.ndarray) -> Statistic:
    # wins[p, q]: number of pairs in which a correct sample of problem p outscores an incorrect one of problem q.
    wins = np.empty((len(passed), len(passed)))
    failures = ~passed & ~np.isnan(scores)
    for q, (row, failed) in enumerate(zip(scores, failures, strict=True)):
        incorrect = np.sort(row[failed])
        beaten = np.searchsorted(incorrect, scores, "left") + np.searchsorted(incorrect, scores, "right")
        wins[:, q] = (beaten / 2 * passed).sum(1)
    correct, incorrect = passed.sum(1), failures.sum(1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        won = ((weights @ wins.astype(weights.dtype)) * weights).sum(1)
        return won / ((weights @ correct.astype(weights.dtype)) * (weights @ incorrect.astype(weights.dtype)))

    return statistic


def pairwise_accuracy(passed: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> Estimate | None:
    """How often a correct sample outscores an incorrect one *of the same problem*; ties count half.

    Choosing a sample needs only this; `auc` also compares scores between problems. Problems with both kinds of sample
    have equal weights. Arguments as for `auc`; None if a seed has no such problem.
    """
    statistics = [_pairwise_statistic(p, s) for p, s in zip(passed, scores, strict=True)]
    return bootstrap(statistics, [len(p) for p in passed])


def _pairwise_statistic(passed: np.ndarray, scores: np.ndarray) -> Statistic:
    pairs = passed[:, :, None] & (~passed & ~np.isnan(scores))[:, None, :]
    wins = (scores[:, :, None] > scores[:, None, :]) + (scores[:, :, None] == scores[:, None, :]) / 2
    count = pairs.sum((1, 2))
    mixed = count > 0
    accuracy = (wins * pairs).sum((1, 2)) / np.maximum(count, 1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return (weights @ accuracy.astype(weights.dtype)) / (weights @ mixed.astype(weights.dtype))

    return statistic
