"""Rerankers measured on labelled candidates: the fractions that they get right, with intervals."""

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from rich.console import Console

from rerankjax.pairs.labelled import Labelled
from rerankjax.progress import progress
from rerankjax.reranker.rerank import PromptLengthError, Reranker
from rerankjax.results import calibration, statistics
from rerankjax.results.selection import best_of, pass_at_k, sample_counts
from rerankjax.run.scoring import score_shares
from rerankjax.standalone.comparison import (
    ALL,
    GREEDY,
    MAJORITY,
    MEASURES,
    ORACLE,
    RANDOM,
    RERANKER,
    Comparison,
    Cost,
    Difference,
    Measure,
    Preferred,
    Reliability,
    Solved,
)


@dataclasses.dataclass(frozen=True)
class Scored:
    """A reranker's scores of each row's candidates, in the rows' order, and the seconds that scoring took."""

    name: str
    scores: Sequence[np.ndarray]
    seconds: float


def compare(rows: Sequence[Labelled], scored: Sequence[Scored]) -> Comparison:
    """Every figure of the rerankers on the rows.

    Raises:
        ValueError: a score is not finite; names the row, the reranker and the remedy.
    """
    for one in scored:
        for row, scores in zip(rows, one.scores, strict=True):
            if not np.isfinite(scores).all():
                raise ValueError(f"{row.where}: {one.name} gives a score that is not finite; score in float32")
    executed = [i for i, row in enumerate(rows) if row.executed]
    others = [i for i, row in enumerate(rows) if not row.executed]
    samples = _Samples([rows[i] for i in executed])
    by_name = {one.name: _padded([one.scores[i] for i in executed]) for one in scored}
    preferences = [rows[i] for i in others]
    correct = {one.name: np.array([_preferred(rows[i], one.scores[i]) for i in others], float) for one in scored}
    sizes = [len(row.candidates) for row in samples.rows] or [0]
    return Comparison(
        rerankers=tuple(by_name),
        problems=len(executed),
        samples_least=min(sizes),
        samples_most=max(sizes),
        preferences=len(others),
        solved=tuple(_solved(samples, by_name)) if executed else (),
        measures=tuple(_measures(samples, by_name)) if executed else (),
        preferred=tuple(_preferences(preferences, correct)),
        differences=(*_solved_differences(samples, by_name), *_preferred_differences(correct)),
        reliabilities=tuple(_reliabilities(samples, by_name)),
        costs=tuple(
            Cost(one.name, sum(len(set(row.candidates)) for row in rows), round(one.seconds, 3)) for one in scored
        ),
    )


def score(name: str, reranker: Reranker, rows: Sequence[Labelled]) -> Scored:
    """The reranker's scores of the rows. Raises ValueError that names the row whose prompt is too long."""
    start, total = time.monotonic(), sum(len(set(row.candidates)) for row in rows)
    with progress(f"score with {name}", total, "candidates", Console(stderr=True)) as advance:
        try:
            scores, _ = score_shares(reranker, [(row.prompt, row.candidates) for row in rows], advance)
        except PromptLengthError as error:
            raise ValueError(f"{rows[error.problem].where}: field 'prompt': {error.reason}") from error
    return Scored(name, scores, time.monotonic() - start)


def dev_accuracy(rows: Sequence[Labelled], scores: Sequence[np.ndarray]) -> float:
    """How often a right candidate outscores a wrong one of its row: mean over rows with both; ties count half."""
    passed = _padded([np.array(row.passed) for row in rows]) == 1
    estimate = statistics.pairwise_accuracy([passed], [_padded(scores)])
    assert estimate is not None, "no row has both"
    return estimate.value


class _Samples:
    """Rows of executed samples as arrays [P, n], False and NaN where a row has fewer."""

    def __init__(self, rows: Sequence[Labelled]) -> None:
        self.rows = rows
        self.sizes = np.array([len(row.candidates) for row in rows])
        self.passed = _padded([np.array(row.passed) for row in rows]) == 1

    def each(
        self, choose: Callable[[np.ndarray, np.ndarray, int], np.ndarray], scores: np.ndarray, m: int
    ) -> np.ndarray:
        """choose(passed, scores, m), float [P]: once for all rows of one size, with m at most that size."""
        outcomes = np.empty(len(self.rows))
        for size in np.unique(self.sizes):
            mask = self.sizes == size
            outcomes[mask] = choose(self.passed[mask, :size], scores[mask, :size], min(m, int(size)))
        return outcomes


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[P, n] with NaN behind rows shorter than n."""
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), np.nan)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def _solved(samples: _Samples, scores: Mapping[str, np.ndarray]) -> Iterator[Solved]:
    n = int(samples.sizes.max())

    def estimate(outcome: np.ndarray, rule: str, m: int, reranker: str = "") -> Solved:
        return Solved(rule=rule, reranker=reranker, n=m, **vars(statistics.mean_estimate([outcome])))

    for name, outcome in _without_reranker(samples).items():
        yield estimate(outcome, name, n)
    for m in sample_counts(n):
        yield estimate(samples.each(lambda passed, _, k: pass_at_k(passed, k), samples.passed, m), ORACLE, m)
        for name, reranker_scores in scores.items():
            yield estimate(samples.each(best_of, reranker_scores, m), RERANKER, m, name)


def _without_reranker(samples: _Samples) -> dict[str, np.ndarray]:
    """The probability, [P], that the answer passes, by the rules that need no reranker and choose among all samples."""
    probabilities = {RANDOM: samples.passed.sum(1) / samples.sizes}
    probabilities[MAJORITY] = np.array([_majority(row.candidates, row.passed) for row in samples.rows])
    if all(row.greedy is not None for row in samples.rows):
        probabilities[GREEDY] = np.array([float(bool(row.greedy)) for row in samples.rows])
    return probabilities


def _majority(candidates: Sequence[str], passed: Sequence[bool]) -> float:
    """The probability that a random one of the most frequent candidates passes."""
    counts = Counter(candidates)
    most = max(counts.values())
    return float(np.mean([p for text, p in zip(candidates, passed, strict=True) if counts[text] == most]))


def _measures(samples: _Samples, scores: Mapping[str, np.ndarray]) -> Iterator[Measure]:
    for name, reranker_scores in scores.items():
        probabilities = _probabilities(samples.passed, reranker_scores)
        error = None
        if probabilities is not None:
            error = calibration.expected_calibration_error([samples.passed], [probabilities])
        values = (
            statistics.auc([samples.passed], [reranker_scores]),
            statistics.pairwise_accuracy([samples.passed], [reranker_scores]),
            error,
        )
        for measure, value in zip(MEASURES, values, strict=True):
            if value is not None:
                yield Measure(reranker=name, measure=measure, **vars(value))


def _reliabilities(samples: _Samples, scores: Mapping[str, np.ndarray]) -> Iterator[Reliability]:
    for name, reranker_scores in scores.items():
        probabilities = _probabilities(samples.passed, reranker_scores)
        if probabilities is not None:
            for calibration_bin in calibration.reliability([samples.passed], [probabilities]):
                yield Reliability(reranker=name, **vars(calibration_bin))


def _probabilities(passed: np.ndarray, scores: np.ndarray) -> np.ndarray | None:
    """The probability that each sample passes, by a sigmoid that is fitted on the other half of the problems."""
    if len(passed) < 2:
        return None
    probabilities = np.empty_like(scores)
    for part in range(2):
        own = np.arange(len(passed)) % 2 == part
        platt = calibration.fit_platt(passed[~own], scores[~own])
        with np.errstate(invalid="ignore"):  # missing samples are NaN
            probabilities[own] = platt.probabilities(scores[own])
    return probabilities


def _preferred(row: Labelled, scores: np.ndarray) -> float:
    """The probability that the best-scored right candidate is chosen, where tied candidates share the probability."""
    passed = np.array(row.passed)
    best, wrong = scores[passed].max(), scores[~passed]
    return 0.0 if (wrong > best).any() else 1 / (1 + int((wrong == best).sum()))


def _preferences(rows: Sequence[Labelled], correct: Mapping[str, np.ndarray]) -> Iterator[Preferred]:
    subsets = {ALL: np.ones(len(rows), bool)} if rows else {}
    for subset in dict.fromkeys(row.subset for row in rows if row.subset):
        subsets[subset] = np.array([row.subset == subset for row in rows])
    sizes = np.array([len(row.candidates) for row in rows])
    for (name, outcome), (subset, mask) in itertools.product(correct.items(), subsets.items()):
        estimate = statistics.mean_estimate([outcome[mask]])
        mean = round(float(sizes[mask].mean()), 2)
        yield Preferred(reranker=name, subset=subset, rows=int(mask.sum()), candidates=mean, **vars(estimate))


def _solved_differences(samples: _Samples, scores: Mapping[str, np.ndarray]) -> Iterator[Difference]:
    if not samples.rows:
        return
    n = int(samples.sizes.max())
    expected = {name: samples.each(best_of, reranker_scores, n) for name, reranker_scores in scores.items()}
    taken = np.arange(len(samples.rows))
    answers = {
        name: samples.passed[taken, np.nanargmax(reranker_scores, 1)] for name, reranker_scores in scores.items()
    }
    baselines = {rule: p for rule, p in _without_reranker(samples).items() if rule != MAJORITY}
    for rule, outcome in baselines.items():
        answer = samples.passed[:, 0] if rule == RANDOM else outcome == 1
        for name in scores:
            yield _difference("solved", name, rule, expected[name] - outcome, answers[name], answer)
    for other, name in itertools.combinations(scores, 2):
        yield _difference("solved", name, other, expected[name] - expected[other], answers[name], answers[other])


def _preferred_differences(correct: Mapping[str, np.ndarray]) -> Iterator[Difference]:
    for other, name in itertools.combinations(correct, 2):
        if len(correct[name]):
            right, theirs = correct[name] == 1, correct[other] == 1
            yield _difference("preferred", name, other, correct[name] - correct[other], right, theirs)


def _difference(
    kind: str, name: str, baseline: str, difference: np.ndarray, right: np.ndarray, theirs: np.ndarray
) -> Difference:
    alone, baseline_alone = int((right & ~theirs).sum()), int((theirs & ~right).sum())
    return Difference(
        kind=kind,
        reranker=name,
        baseline=baseline,
        alone=alone,
        baseline_alone=baseline_alone,
        p_value=statistics.mcnemar(alone, baseline_alone),
        **vars(statistics.mean_estimate([difference])),
    )
