"""Several rerankers' scores of the same samples as one score (Coste et al. 2023, arXiv 2310.02743)."""

from collections.abc import Sequence

import numpy as np

from rerankjax.results.selection import best_of

ENSEMBLES = {"mean": "mean", "minimum": "minimum", "lower_bound": "mean - k sd"}


def standardised(scores: np.ndarray, dev_scores: np.ndarray) -> np.ndarray:
    """Scores [R, P, n] on one scale: each reranker's, standardised by their mean and deviation on the dev split."""
    mean = dev_scores.mean((1, 2), keepdims=True)
    spread = dev_scores.std((1, 2), keepdims=True)
    return np.asarray((scores - mean) / np.where(spread > 0, spread, 1.0))


def combined(ensemble: str, scores: np.ndarray, k: float) -> np.ndarray:
    """One score per sample, [P, n], from R rerankers' standardised scores, [R, P, n]. k: for "lower_bound" only."""
    match ensemble:
        case "mean":
            return np.asarray(scores.mean(0))
        case "minimum":
            return np.asarray(scores.min(0))
        case "lower_bound":
            return np.asarray(scores.mean(0) - k * scores.std(0))
    raise ValueError(f"ensemble is {ensemble!r}; choose one of {', '.join(ENSEMBLES)}")


def choose_k(passed: np.ndarray, scores: np.ndarray, grid: Sequence[float]) -> float:
    """The k of `grid` whose mean - k sd solves most of the dev split; the smallest wins ties."""
    return max(sorted(grid), key=lambda k: round(best_of(passed, combined("lower_bound", scores, k)).mean(), 9))
