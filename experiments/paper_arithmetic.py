"""What the figures of the paper's Table 1 show by themselves, and what they do not.

    python experiments/paper_arithmetic.py        # prints the sentences of docs/paper_table.md, each with its figures

Nothing is trained: every number is arithmetic on `rerankjax.results.paper`.
"""

import itertools
import math

from rerankjax.results.paper import LANGUAGE_TITLES, ROWS, Row
from rerankjax.results.statistics import mcnemar

# HumanEval's problems, and how many of them MultiPL-E translates (nuprl/MultiPL-E on the Hugging Face hub).
PROBLEMS = {"py": 164, "cpp": 161, "java": 158, "php": 161, "ts": 159, "cs": 158, "sh": 158, "js": 161}
ONE = "RewardRanker (6.7B + 6.7B)"
HARD, SELF = "RewardRanker, 2 iter., hard negatives", "RewardRanker, 2 iter., self-training"
SAME = 0.5  # points: less than one problem of a language


def row(model: str, size: str = "") -> Row:
    return next(r for r in ROWS if r.model == model and size in ("", r.size))


def gains(better: Row, worse: Row) -> dict[str, float]:
    """The difference in each language, in points."""
    return {
        name: round(a - b, 1)
        for name, a, b in zip(LANGUAGE_TITLES.values(), better.percent, worse.percent, strict=True)
    }


def listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:+.1f}" for name, value in values.items())


def standard_error(of: Row) -> float:
    """Standard error of the mean over languages, in points, if every problem of every language is a separate trial."""
    variances = [p * (100 - p) / n for p, n in zip(of.percent, PROBLEMS.values(), strict=True)]
    return math.sqrt(sum(variances)) / len(variances)


def standard_error_shared(of: Row) -> float:
    """The same, if the translations of a problem are solved together or not at all: the error of one language."""
    return math.sqrt(of.average * (100 - of.average) / max(PROBLEMS.values()))


def discordant_needed(points: float) -> int:
    """The most problems that one of two systems may solve alone for a difference of `points` to reach p < .05."""
    total = sum(PROBLEMS.values())
    gain = round(points / 100 * total)
    significant = itertools.takewhile(
        lambda n: mcnemar((n + gain) // 2, (n - gain) // 2) < 0.05, range(gain, total + 1, 2)
    )
    return max(significant, default=0)


def sentences() -> list[str]:
    """What the table's figures say, one finding per sentence."""
    greedy, one, hard, own, large = (
        row("DeepSeek-Coder-Instruct", "6.7B"), row(ONE), row(HARD), row(SELF), row("DeepSeek-Coder-Instruct", "33B")
    )  # fmt: skip
    gpt4 = row("GPT-4")
    first, of_hard, of_self = gains(one, greedy), gains(hard, one), gains(own, one)
    leader = max(first, key=lambda name: first[name])
    rest = {name: value for name, value in first.items() if name != leader}
    total, error, shared = sum(PROBLEMS.values()), standard_error(one), standard_error_shared(one)
    worse = {name: value for name, value in of_self.items() if value < 0}
    beaten = [
        f"{name} ({a:g} against {b:g})"
        for name, a, b in zip(LANGUAGE_TITLES.values(), own.percent, gpt4.percent, strict=True)
        if a > b
    ]
    return [
        f"One iteration against the same generator's greedy answer: {listed(first)}; mean {mean(first):+.1f} (the "
        f"paper's averages differ by {one.average - greedy.average:+.1f}).",
        f"{leader} contributes most: without it the mean gain is {mean(rest):+.1f}, not {mean(first):+.1f}. "
        f"In {sum(v <= SAME for v in first.values())} of {len(first)} languages one iteration is no more than "
        f"{SAME} points above greedy.",
        f"A second iteration on hard negatives alone solves less than one iteration: {hard.average} against "
        f"{one.average} ({hard.average - one.average:+.1f}; by language {listed(of_hard)}).",
        f"Only self-training gains: {own.average} against {one.average} ({own.average - one.average:+.1f}), and it "
        f"loses in {len(worse)} of {len(of_self)} languages ({listed(worse)}).",
        f"The table has {total:,} problems in {len(PROBLEMS)} languages. The standard error of its average is "
        f"{error:.1f} points if each problem is a separate trial, and {shared:.1f} if the translations of a problem "
        "are solved together; the standard errors of a difference of two independent averages are "
        f"{error * math.sqrt(2):.1f} and {shared * math.sqrt(2):.1f}. The gain of a second iteration is "
        f"{own.average - one.average:+.1f}.",
        f"In a paired test, the second iteration's {own.average - one.average:+.1f} would reach p < .05 only if at "
        f"most {discordant_needed(own.average - one.average)} of the {total:,} problems are solved by exactly one of "
        "the two systems. The paper does not give outcomes per problem, so this cannot be computed.",
        f"Against 33B greedy: {own.average} against {large.average} ({own.average - large.average:+.1f}), "
        f"one iteration {one.average - large.average:+.1f}. The last row by language: {listed(gains(own, large))}.",
        f"GPT-4 is beaten in {', '.join(beaten) or 'no language'}.",
        "The rerankers choose the best of n samples and are compared with a greedy answer. The table does not have a "
        "choice by log-probability or by majority among the same n samples, which needs no training. It also does not "
        "give n and the temperature.",
    ]


def mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


if __name__ == "__main__":
    print("\n".join(f"- {sentence}" for sentence in sentences()))
