"""The paper's Table 1: fraction of MultiPL-E's problems solved, in percent, by model and language.

Sorokin, Sedykh, Malykh: Iterative Self-Training for Code Generation via Reinforced Re-Ranking (ECIR 2025, arXiv
2504.09643, DOI 10.1007/978-3-031-88714-7_21), Table 1. DeepSeek-Coder's rows are greedy there; the paper does not say
how many samples per problem the reranker chose from.
"""

from dataclasses import dataclass

# MultiPL-E's short names in the order of the paper's columns.
LANGUAGE_TITLES = {
    "py": "Python",
    "cpp": "C++",
    "java": "Java",
    "php": "PHP",
    "ts": "TS",
    "cs": "C#",
    "sh": "Bash",
    "js": "JS",
}


@dataclass(frozen=True)
class Answer:
    """Our answer beside a row of the paper: `rule`'s choice for a `system` of the `run` with that row's generator."""

    run: str
    system: str
    rule: str
    decoding: str = ""


@dataclass(frozen=True)
class Row:
    """`percent` has a figure for every language of `LANGUAGE_TITLES`, in its order; `average` is the paper's own."""

    model: str
    size: str
    percent: tuple[float, ...]
    average: float
    ours: tuple[Answer, ...] = ()


def _generator(run: str) -> tuple[Answer, ...]:
    # The paper's generators are greedy; sampled, they show what the reranker chooses from.
    return Answer(run, "base", "greedy", "greedy"), Answer(run, "base", "random", "sampled")


def _reranked(run: str, system: str) -> tuple[Answer, ...]:
    return (Answer(run, system, "reranker"),)


RUNS = ("1.3b", "6.7b", "33b")  # by the generator's size
MULTIPL_E, MBPP = "multipl_e", "mbpp"  # the evaluation sets
_CODER, _RANKER = "DeepSeek-Coder-Instruct", "RewardRanker"
ROWS = (
    Row("GPT-3.5-Turbo", "", (76.2, 63.4, 69.2, 60.9, 69.1, 70.8, 42.4, 67.1), 64.9),
    Row("GPT-4", "", (84.1, 76.4, 81.6, 77.2, 77.4, 79.1, 58.2, 78.0), 76.5),
    Row(_CODER, "1.3B", (65.2, 45.3, 51.9, 45.3, 59.7, 55.1, 12.7, 52.2), 48.4, _generator("1.3b")),
    Row(_CODER, "6.7B", (78.9, 63.4, 68.4, 68.9, 67.2, 72.8, 36.7, 72.7), 66.1, _generator("6.7b")),
    Row(_CODER, "33B", (79.3, 68.9, 73.4, 72.7, 67.9, 74.1, 43.0, 73.9), 69.2, _generator("33b")),
    Row(
        f"{_RANKER} (1.3B + 6.7B)",
        "8B",
        (77.3, 72.3, 70.6, 66.3, 66.0, 74.4, 35.8, 73.9),
        67.1,
        _reranked("1.3b", "ppo"),
    ),
    Row(
        f"{_RANKER} (6.7B + 6.7B)",
        "13.4B",
        (78.9, 75.7, 74.6, 72.1, 66.4, 75.1, 41.4, 74.5),
        69.9,
        _reranked("6.7b", "ppo"),
    ),
    Row(
        f"{_RANKER}, 2 iter., hard negatives",
        "13.4B",
        (80.2, 77.9, 73.4, 71.6, 66.4, 75.8, 38.2, 73.8),
        69.7,
        _reranked("6.7b", "hard+ppo"),
    ),
    Row(
        f"{_RANKER}, 2 iter., self-training",
        "13.4B",
        (81.7, 79.2, 77.4, 71.6, 67.0, 75.2, 39.6, 75.1),
        70.9,
        _reranked("6.7b", "self_training+ppo"),
    ),
)
