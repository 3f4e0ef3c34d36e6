"""Training problems that share text with evaluation problems, found and removed."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rerankjax.problems.problem import Problem

SHORTEST = 3  # words of an evaluation problem that is looked for at all
# Lines that all problems of a language share.
_PREAMBLE = re.compile(r"\s*(#include|#!|<\?php|import |from \w|using |package )")


@dataclass(frozen=True)
class Overlap:
    """`ngram`, words with single spaces, is in the prompts of a training problem and of an evaluation problem."""

    problem: str
    language: str
    evaluation_problem: str
    evaluation_language: str
    ngram: str


def words(text: str) -> list[str]:
    """The text's words after normalisation, which leaves out what differs between a problem's copies.

    Unicode forms, case, punctuation, comment signs, line ends, imports, and whether names are written likeThis or
    like_this.
    """
    lines = (line for line in unicodedata.normalize("NFKC", text).splitlines() if not _PREAMBLE.match(line))
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", "\n".join(lines))
    return re.findall(r"[^\W_]+", parted.casefold())


def decontaminate(
    training: Sequence[Problem], evaluation: Sequence[Problem], *, n: int = 10
) -> tuple[tuple[Problem, ...], tuple[Overlap, ...]]:
    """The training problems whose prompts share no n words in a row with an evaluation problem's; and what was removed.

    The rule of DeepSeek-Coder's training data (Guo et al. 2024, arXiv 2401.14196, section 2.4): a 10-gram in common, or
    the whole text of an evaluation problem that is shorter than that and has three words or more. GPT-3 took 13 (Brown
    et al. 2020, arXiv 2005.14165, appendix C), which removes less: of MBPP's 374 training problems 19 for its other 600
    problems, where 10 removes 58. One Overlap a problem removed: its first, and the first evaluation problem with it.
    """
    if n < SHORTEST:
        raise ValueError(f"decontaminate: n is {n}; use at least {SHORTEST}: shorter n-grams are in most prompts.")
    owners: dict[tuple[str, ...], Problem] = {}
    for problem in evaluation:
        text = words(problem.prompt)
        for ngram in _ngrams(text, min(n, len(text))):
            if len(ngram) >= SHORTEST:
                owners.setdefault(ngram, problem)
    lengths = sorted({len(ngram) for ngram in owners}, reverse=True)
    kept, removed = [], []
    for problem in training:
        text = words(problem.prompt)
        shared = next((g for length in lengths for g in _ngrams(text, length) if g in owners), None)
        if shared is None:
            kept.append(problem)
        else:
            owner = owners[shared]
            removed.append(Overlap(problem.name, problem.language, owner.name, owner.language, " ".join(shared)))
    return tuple(kept), tuple(removed)


def _ngrams(text: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(text[i : i + n]) for i in range(len(text) - n + 1))
