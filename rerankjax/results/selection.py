"""Selection rules: which of a problem's samples is the answer, and how often that answer passes.

The greedy answer is not one of the samples, so it does not depend on their number. For a rule that takes the best
score, the result for a random m of the n samples has a closed form; for a rule by which samples vote, it has none.
Ties share equally; copies of a program count as often as they were sampled.

The rules of `EXECUTION_RULES` look at programs' outputs on the prompt's inputs and on inputs made from these, never at
the tests that decide (see `verdicts.outputs`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rerankjax.reranker.ensembles import combined
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
# examples: a sample that reproduces the prompt's examples, if any does (AlphaCode's filter, arXiv 2203.07814).
# clusters: a sample of the largest group with equal outputs (MBR-exec, arXiv 2204.11454). mass: the best-scored sample
# of the group with the largest sum of the reranker's probabilities (LEVER, arXiv 2302.08468). Two names: the filter
# comes first.
EXECUTION_RULES = {
    "examples": "examples",
    "clusters": "clusters",
    "examples+clusters": "examples, clusters",
    "examples+reranker": "examples, reranker",
    "mass": "cluster mass",
    "examples+mass": "examples, cluster mass",
}
SFT_RULE = "reranker+sft_log_probability"
FURTHER_RULES = {SFT_RULE: "reranker + lambda SFT log-p"} | EXECUTION_RULES
ALL_RULES = RULES | FURTHER_RULES
# For output that can show Greek letters:
RULE_HEADS, FURTHER_HEADS = (
    {rule: name.replace("lambda", "λ") for rule, name in rules.items()} for rules in (RULES, FURTHER_RULES)
)
# These rules need no reranker, so systems that share a policy share their figures.
POLICY_RULES = (
    "greedy",
    "random",
    "log_probability",
    "majority",
    "oracle",
    "examples",
    "clusters",
    "examples+clusters",
)

_VOTE_DRAWS = 200


def choice_probabilities(scores: np.ndarray, m: int | None = None) -> np.ndarray:
    """The probability that each sample is the best-scored of m drawn without replacement.

    The best of the m has a score <= s with probability C(#{<= s}, m) / C(n, m); tied samples share the difference.

    Args:
      scores: [P, n], finite.
      m: 1 to n; None means n, which is the plain argmax.

    Returns:
      float [P, n], rows sum to 1.

    Raises:
      ValueError: a score is not finite, or m is not in 1..n.
    """
    n = scores.shape[1]
    m = n if m is None else m
    if not 1 <= m <= n:
        raise ValueError(f"m is {m}; choose 1 to {n}, the number of samples per problem")
    if not np.isfinite(scores).all():
        raise ValueError(
            "scores contain NaN or infinity, which cannot be ranked; score every sample with a finite number"
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


@dataclass(frozen=True)
class Ballot:
    """How samples vote: the group with the largest sum of weights wins, and in that group the best-scored sample.

    groups: int [P, n], equal within a group; a sample with a negative number is in no group and has no weight. weights:
    float [P, n], 0 or more. scores: float [P, n]. kept: bool [P, n], the samples that may vote and win; if no drawn
    sample is kept, all drawn samples may.
    """

    groups: np.ndarray
    weights: np.ndarray
    scores: np.ndarray
    kept: np.ndarray

    def winners(self, subset: np.ndarray) -> np.ndarray:
        """Which of the samples at `subset`, int [P, m], win: bool [P, m]; several where they tie."""
        groups, weights, scores, kept = (
            np.take_along_axis(array, subset, 1) for array in (self.groups, self.weights, self.scores, self.kept)
        )
        kept = kept | ~kept.any(1, keepdims=True)
        together = (groups[:, :, None] == groups[:, None, :]) & (groups >= 0)[:, :, None]
        votes = (together * (weights * kept)[:, None, :]).sum(2)
        won = kept & (votes == np.where(kept, votes, -1.0).max(1, keepdims=True))
        return np.asarray(won & (scores == np.where(won, scores, -np.inf).max(1, keepdims=True)))


def vote(passed: np.ndarray, ballot: Ballot, m: int | None = None) -> np.ndarray:
    """The probability, [P], that the winner of m random samples passes.

    Exact for m = n and m = 1; otherwise the mean over 200 subsets from a fixed seed.
    """
    problems, n = passed.shape
    m = n if m is None else m
    if not 1 <= m <= n:
        raise ValueError(f"m is {m}; choose 1 to {n}, the number of samples per problem")
    if m == 1:
        return passed.mean(1)
    draws = 1 if m == n else _VOTE_DRAWS
    rng = np.random.default_rng(0)
    total = np.zeros(problems)
    for _ in range(draws):
        subset = rng.random((problems, n)).argsort(1)[:, :m]
        won = ballot.winners(subset)
        total += (won & np.take_along_axis(passed, subset, 1)).sum(1) / won.sum(1)
    return total / draws


def rules_of(evaluation: Evaluation) -> tuple[str, ...]:
    """The rules of `ALL_RULES` for which the evaluation has the data."""
    lacking = set() if evaluation.executed else set(EXECUTION_RULES)
    lacking |= set() if evaluation.likelihood else {SFT_RULE}
    lacking |= set() if evaluation.reranker else ALL_RULES.keys() - set(POLICY_RULES)
    return tuple(rule for rule in ALL_RULES if rule not in lacking)


def solved(evaluation: Evaluation, rule: str, m: int | None = None) -> np.ndarray:
    """The probability, float [P], that `rule` (of `ALL_RULES`) chooses a passing answer among m random samples."""
    passed = evaluation.passed
    match rule:
        case "greedy":
            return evaluation.greedy.astype(float)
        case "random":
            return passed.mean(1)
        case "oracle":
            return pass_at_k(passed, m)
    way = _way(evaluation, rule)
    return vote(passed, way, m) if isinstance(way, Ballot) else best_of(passed, way, m)


def answers(evaluation: Evaluation, rule: str) -> np.ndarray:
    """Whether the one answer that `rule` gives passes, bool [P]: an actual choice, where `solved` has probabilities.

    The first of a problem's samples stands for a random one, and the earliest of tied samples is chosen.
    """
    passed = evaluation.passed
    match rule:
        case "greedy":
            return evaluation.greedy
        case "random":
            return passed[:, 0]
        case "oracle":
            return np.asarray(passed.any(1))
    way = _way(evaluation, rule)
    every = np.broadcast_to(np.arange(passed.shape[1]), passed.shape)
    best = way.winners(every) if isinstance(way, Ballot) else way
    return passed[np.arange(len(passed)), best.argmax(1)]


def _way(e: Evaluation, rule: str) -> np.ndarray | Ballot:
    """The score of each sample, [P, n], or the samples' ballot, by which `rule` chooses."""
    match rule:
        case "log_probability":
            return e.log_probabilities
        case "reranker":
            return e.reranker_scores
        case "reranker+log_probability":
            return e.reranker_scores + e.log_prob_weight * e.log_probabilities
        case "reranker+sft_log_probability":
            if e.likelihood is None:
                raise ValueError(
                    f"rule is {rule!r}, but system {e.system!r} has no SFT log-probabilities; give its likelihood"
                )
            return e.reranker_scores + e.sft_log_prob_weight * e.likelihood.sft
    everything = np.ones_like(e.passed)
    one, nothing = np.ones(e.passed.shape), np.zeros(e.passed.shape)
    if rule == "majority":
        groups = np.array([[row.index(program) for program in row] for row in e.programs])
        return Ballot(groups, one, nothing, everything)
    if rule not in EXECUTION_RULES:
        raise ValueError(f"rule is {rule!r}; choose one of {', '.join(ALL_RULES)}")
    if e.executed is None:
        raise ValueError(f"rule is {rule!r}, but system {e.system!r} has no program outputs; give executed")
    filtered, by = rule.startswith("examples"), rule.removeprefix("examples").removeprefix("+")
    kept = e.executed.reproduces if filtered else everything
    match by:
        case "":
            return kept.astype(float)
        case "reranker":
            return _ranks(e.reranker_scores) + kept * e.passed.shape[1]
        case "clusters":
            return Ballot(e.executed.clusters, one, nothing, kept)
        case _:
            return Ballot(e.executed.clusters, e.probabilities, e.reranker_scores, kept)


def _ranks(scores: np.ndarray) -> np.ndarray:
    """How many of a problem's samples score lower, [P, n]."""
    return (scores[:, :, None] > scores[:, None, :]).sum(2)


def choose_lambda(
    passed: np.ndarray, scores: np.ndarray, log_probabilities: np.ndarray, grid: Sequence[float]
) -> float:
    """The lambda of `grid` whose scores + lambda * log_probabilities solve most; the one nearest 0 wins ties.

    Pass the dev split's arrays, [P, n] each: a lambda chosen on the test split would inflate the rule's figure.
    """
    if len(grid) == 0:
        raise ValueError("grid is empty; give at least one lambda, 0.0 for the reranker alone")
    return max(
        sorted(grid, key=abs), key=lambda lam: round(best_of(passed, scores + lam * log_probabilities).mean(), 9)
    )


def choose_k(passed: np.ndarray, scores: np.ndarray, grid: Sequence[float]) -> float:
    """The k of `grid` whose mean - k sd of several rerankers' `scores` solves most of dev; the smallest wins ties."""
    return max(sorted(grid), key=lambda k: round(best_of(passed, combined("lower_bound", scores, k)).mean(), 9))


def sample_counts(n: int) -> tuple[int, ...]:
    """The m of a best-of-m curve: 1, 2, 4, ... and n."""
    return (*(2**i for i in range((n - 1).bit_length())), n)
