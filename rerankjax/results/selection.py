"""Selection rules: which of a problem's samples is the answer, and how often that answer passes.

The greedy answer is not one of the samples, so it does not depend on their number. Every other rule except the majority
takes the best of a fixed score, so what it does with a random m of the n samples has a closed form. Ties share equally;
copies of a program count as often as they were sampled.
"""

import math
from collections.abc import Sequence

import numpy as np

from rerankjax.results.evaluation import Evaluation

RULES = {
    "greedy": "greedy",
    "random": "random",
    "log_probability": "log-p",
    "majority": "majority",
    "reranker": "reranker",
    "reranker+log_probability": "reranker + lambda log-p",
    "oracle": "oracle",
}
RULE_HEADS = {rule: name.replace("lambda", "λ") for rule, name in RULES.items()}  # where Greek letters can be shown
# These rules need no reranker, so systems that share a policy share their figures.
POLICY_RULES = ("greedy", "random", "log_probability", "majority", "oracle")

_MAJORITY_DRAWS = 200


def choice_probabilities(scores: np.ndarray, m: int | None = None) -> np.ndarray:
    """The probability that each sample is the best-scored of m drawn without replacement.

    The best of the m has a score <= s with probability C(#{<= s}, m) / C(n, m); those that tie share the difference.

    Args:
      scores: [P, n], finite.
      m: 1 to n; n if None, so the plain argmax.

    Returns:
      float [P, n], rows sum to 1.

    Raises:
      ValueError: a score is not finite, or m is not in 1..n.
    """
    n = scores.shape[1]
    m = n if m is None else m
    if not 1 <= m <= n:
        raise ValueError(f"m is {m}; choose 1 to {n}, the samples a problem")
    if not np.isfinite(scores).all():
        raise ValueError(
            "scores hold a NaN or an infinity, which have no rank; score every sample with a finite number"
        )
    share = np.array([math.comb(j, m) / math.comb(n, m) for j in range(n + 1)])
    up_to = (scores[:, None, :] <= scores[:, :, None]).sum(2)
    below = (scores[:, None, :] < scores[:, :, None]).sum(2)
    return (share[up_to] - share[below]) / (up_to - below)


def best_of(passed: np.ndarray, scores: np.ndarray, m: int | None = None) -> np.ndarray:
    """The probability, [P], that the best-scored of m random samples passes. See `choice_probabilities`."""
    return (choice_probabilities(scores, m) * passed).sum(1)


def pass_at_k(passed: np.ndarray, k: int | None = None) -> np.ndarray:
    """The probability, [P], that any of k random samples passes: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021)."""
    return best_of(passed, passed, k)


def majority(passed: np.ndarray, programs: Sequence[Sequence[str]], m: int | None = None) -> np.ndarray:
    """The probability, [P], that the most frequent program of m random samples passes.

    Exact for m = 1 and m = n; between them the mean over 200 subsets of a fixed seed.
    """
    problems, n = passed.shape
    m = n if m is None else m
    if not 1 <= m <= n:
        raise ValueError(f"m is {m}; choose 1 to {n}, the samples a problem")
    if m == 1:
        return passed.mean(1)
    names = np.array([[row.index(program) for program in row] for row in programs])
    draws = 1 if m == n else _MAJORITY_DRAWS
    rng = np.random.default_rng(0)
    total = np.zeros(problems)
    for _ in range(draws):
        subset = rng.random((problems, n)).argsort(1)[:, :m]
        name = np.take_along_axis(names, subset, 1)
        count = (name[:, :, None] == name[:, None, :]).sum(2)
        winners = count == count.max(1, keepdims=True)
        total += (winners & np.take_along_axis(passed, subset, 1)).sum(1) / winners.sum(1)
    return total / draws


def rules_of(reranker: str) -> tuple[str, ...]:
    """The rules that a system can follow: without a reranker (""), those of its policy."""
    return tuple(RULES) if reranker else POLICY_RULES


def solved(evaluation: Evaluation, rule: str, m: int | None = None) -> np.ndarray:
    """The probability, float [P], that the answer `rule` (a key of `RULES`) chooses among m random samples passes."""
    passed = evaluation.passed
    match rule:
        case "greedy":
            return evaluation.greedy.astype(float)
        case "random":
            return passed.mean(1)
        case "log_probability":
            return best_of(passed, evaluation.log_probabilities, m)
        case "majority":
            return majority(passed, evaluation.programs, m)
        case "reranker":
            return best_of(passed, evaluation.reranker_scores, m)
        case "reranker+log_probability":
            return best_of(passed, _mixed_scores(evaluation), m)
        case "oracle":
            return pass_at_k(passed, m)
    raise ValueError(f"rule is {rule!r}; choose one of {', '.join(RULES)}")


def answers(evaluation: Evaluation, rule: str) -> np.ndarray:
    """Whether the one answer that `rule` gives passes, bool [P]: an actual choice, where `solved` has probabilities.

    The first of a problem's samples stands for a random one, and of samples that tie the earlier is chosen.
    """
    passed = evaluation.passed
    match rule:
        case "greedy":
            return evaluation.greedy
        case "random":
            return passed[:, 0]
        case "oracle":
            return np.asarray(passed.any(1))
        case "log_probability":
            scores = evaluation.log_probabilities
        case "majority":
            scores = np.array([[row.count(program) for program in row] for row in evaluation.programs])
        case "reranker":
            scores = evaluation.reranker_scores
        case "reranker+log_probability":
            scores = _mixed_scores(evaluation)
        case _:
            raise ValueError(f"rule is {rule!r}; choose one of {', '.join(RULES)}")
    return passed[np.arange(len(passed)), scores.argmax(1)]


def _mixed_scores(evaluation: Evaluation) -> np.ndarray:
    return evaluation.reranker_scores + evaluation.log_prob_weight * evaluation.log_probabilities


def choose_lambda(
    passed: np.ndarray, scores: np.ndarray, log_probabilities: np.ndarray, grid: Sequence[float]
) -> float:
    """The lambda of `grid` whose scores + lambda * log_probabilities solve most; of equals the one nearest 0.

    Give it the dev split's arrays, [P, n] each: chosen on the test split, the rule's figure would be too good.
    """
    if len(grid) == 0:
        raise ValueError("grid is empty; give at least one lambda, 0.0 for the reranker alone")
    return max(
        sorted(grid, key=abs), key=lambda lam: round(best_of(passed, scores + lam * log_probabilities).mean(), 9)
    )


def sample_counts(n: int) -> tuple[int, ...]:
    """The m of a best-of-m curve: 1, 2, 4, ... and n."""
    return (*(2**i for i in range((n - 1).bit_length())), n)
