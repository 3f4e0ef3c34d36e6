"""The mean over languages, where one problem is posed in several."""

import re
from collections.abc import Sequence

import numpy as np

from rerankjax.results.evaluation import Evaluation
from rerankjax.results.selection import solved
from rerankjax.results.statistics import Estimate, Statistic, bootstrap


def common_name(problem: str, language: str) -> str:
    """The name that all translations of a problem share.

    A run may end their names in "-LANGUAGE" to tell them apart; the names of HumanEval and MultiPL-E differ.
    """
    name = problem.removesuffix(f"-{language}")
    number = re.match(r"HumanEval[/_](\d+)", name)
    return f"HumanEval/{number[1]}" if number else name


def mean_over_languages(evaluations: Sequence[Evaluation], rule: str) -> Estimate:
    """The mean of the languages' fractions solved by `rule`, as the paper averages, with its 95% interval.

    Problems are resampled by their common name, all translations of one together: what is hard in one language is hard
    in others, so the languages' intervals are not independent.

    Args:
      evaluations: one system's, one for every seed.
      rule: a key of `RULES` that the system can follow.
    """
    names = [sorted(set(map(common_name, e.problems, e.languages))) for e in evaluations]
    statistics = [_statistic(e, solved(e, rule), names_of) for e, names_of in zip(evaluations, names, strict=True)]
    estimate = bootstrap(statistics, [len(names_of) for names_of in names])
    assert estimate is not None
    return estimate


def _statistic(evaluation: Evaluation, outcome: np.ndarray, names: Sequence[str]) -> Statistic:
    row = {language: i for i, language in enumerate(sorted(set(evaluation.languages)))}
    column = {name: i for i, name in enumerate(names)}
    problems, totals = np.zeros((2, len(row), len(column)))
    for language, problem, value in zip(evaluation.languages, evaluation.problems, outcome, strict=True):
        cell = row[language], column[common_name(problem, language)]
        problems[cell] += 1
        totals[cell] += value

    def statistic(weights: np.ndarray) -> np.ndarray:
        fractions = (weights @ totals.T.astype(weights.dtype)) / (weights @ problems.T.astype(weights.dtype))
        return np.asarray(fractions.mean(1))

    return statistic
