"""How a problem is asked, as the config says: from a problem to a prompt, and from a model's text to a program."""

import dataclasses
import functools
import types
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rerankjax.problems.problem import Problem
from rerankjax.problems.sources import SourceConfig
from rerankjax.prompts import chat, completion

STYLES = {"completion": completion, "chat": chat}


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """style: "completion", text to continue; or "chat", a turn of the tokenizer's chat template.

    shots: sources of solved problems that are shown before those of MBPP's kind (few-shot), `shot_names` which of them,
    (): all.
    """

    style: str
    shots: tuple[SourceConfig, ...] = ()
    shot_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f'style = "{self.style}" is unknown: use one of {", ".join(STYLES)}')


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """Problems, and the same as a model is asked them: with what it reads as their prompt and their stop tokens."""

    style: str
    originals: tuple[Problem, ...]
    asked: tuple[Problem, ...]

    @property
    def _style(self) -> types.ModuleType:
        return STYLES[self.style]

    def source(self, problem: str, text: str) -> str:
        """The program, without its tests, in what a model wrote for the problem of that name."""
        return str(self._style.source(self.original(problem), text))

    def answer(self, problem: str, solution: str) -> str:
        """What a model would write that gives `solution`."""
        return str(self._style.answer(self.original(problem), solution))

    def original(self, problem: str) -> Problem:
        return self.originals[self._places[problem]]

    def first(self, count: int) -> "ProblemSet":
        """The first `count` problems, 0: all."""
        return ProblemSet(self.style, self.originals[: count or None], self.asked[: count or None])

    def where(self, keep: Sequence[bool]) -> "ProblemSet":
        """The problems for which `keep` is true."""
        pairs = (
            [p for p, kept in zip(problems, keep, strict=True) if kept] for problems in (self.originals, self.asked)
        )
        originals, asked = map(tuple, pairs)
        return ProblemSet(self.style, originals, asked)

    def __contains__(self, problem: str) -> bool:
        return problem in self._places

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {problem.name: i for i, problem in enumerate(self.originals)}


def ask(
    problems: Sequence[Problem], style: str, tokenizer: PreTrainedTokenizerBase, shots: Sequence[Problem] = ()
) -> ProblemSet:
    """The problems as they are asked. `shots` are shown before those of MBPP's kind.

    Raises:
        ValueError: the style is "chat" and the tokenizer has no chat template; a shot has no solution.
    """
    way = STYLES[style]
    asked = tuple(
        dataclasses.replace(
            problem,
            prompt=way.prompt(problem, tokenizer, shots if problem.standalone and not problem.cases else ()),
            stop_tokens=way.stop_tokens(problem),
        )
        for problem in problems
    )
    return ProblemSet(style, tuple(problems), asked)
