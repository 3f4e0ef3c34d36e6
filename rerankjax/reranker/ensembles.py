"""Several rerankers' scores of the same samples as one score (Coste et al. 2023, arXiv 2310.02743)."""

from typing import TypeVar

import jax
import numpy as np

ENSEMBLES = {"mean": "mean", "minimum": "minimum", "lower_bound": "mean - k sd"}

Scores = TypeVar("Scores", np.ndarray, jax.Array)


def standardised(scores: np.ndarray, dev_scores: np.ndarray) -> np.ndarray:
    """Scores [R, P, n] on one scale: each reranker's, standardised by their mean and deviation on the dev split."""
    mean = dev_scores.mean((1, 2), keepdims=True)
    spread = dev_scores.std((1, 2), keepdims=True)
    return np.asarray((scores - mean) / np.where(spread > 0, spread, 1.0))


def combined(ensemble: str, scores: Scores, k: float) -> Scores:
    """One score per sample, [...], from R rerankers' standardised scores, [R, ...]. k: for "lower_bound" only."""
    match ensemble:
        case "mean":
            return scores.mean(0)
        case "minimum":
            return scores.min(0)
        case "lower_bound":
            return scores.mean(0) - k * scores.std(0)
    raise ValueError(f"ensemble is {ensemble!r}; choose one of {', '.join(ENSEMBLES)}")
