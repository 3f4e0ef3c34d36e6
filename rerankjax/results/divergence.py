"""How far answers are from the SFT model's samples: the scale on which policies and best-of-n can be compared."""

import math

import numpy as np

from rerankjax.results.evaluation import Evaluation
from rerankjax.results.selection import choice_probabilities


def best_of_n_divergence(n: int) -> float:
    """The KL, in nats, of the best of n samples to one sample: log n - (n - 1) / n.

    Exact if no two samples tie, otherwise an upper bound (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def divergence(evaluation: Evaluation, rule: str) -> np.ndarray:
    """Estimates, [P], whose mean is the KL of `rule`'s answers to the SFT model, in nats per completion.

    rule: "random", one sample of the policy: the mean log-ratio. Or "reranker", the best-scored of n:
    KL(best of n | SFT) = KL(best of n | policy) + the mean log-ratio of the chosen sample.

    Raises:
      ValueError: the SFT model's log-probabilities are missing, or the rule is another one.
    """
    if evaluation.likelihood is None or rule not in ("random", "reranker"):
        raise ValueError(
            f"system {evaluation.system!r}, rule {rule!r}: the KL is unknown; give the evaluation's likelihood, and "
            "use the rule random or reranker"
        )
    log_ratio = evaluation.likelihood.log_ratio
    if rule == "random":
        return np.asarray(log_ratio.mean(1))
    chosen = (choice_probabilities(evaluation.reranker_scores) * log_ratio).sum(1)
    return np.asarray(best_of_n_divergence(log_ratio.shape[1]) + chosen)
