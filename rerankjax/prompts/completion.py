"""Problems as text that a model continues, and programs from its completions.

A problem whose prompt is code is continued as it is, as MultiPL-E does (github.com/nuprl/MultiPL-E). MBPP is asked as
DeepSeek-Coder's evaluation of base models does (github.com/deepseek-ai/DeepSeek-Coder, Evaluation/MBPP/{mbpp.py,
utils/dataset.py}), with or without examples. Of a problem with cases, the description is a comment.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rerankjax.problems.problem import Problem
from rerankjax.problems.problem import source as whole_program
from rerankjax.prompts.tokenizer import opening

MBPP_STOP_TOKENS = ("[DONE]",)
COMMENTS = {"py": "#", "sh": "#"}  # "//" elsewhere
NAMES = {
    "py": "Python",
    "cpp": "C++",
    "java": "Java",
    "php": "PHP",
    "ts": "TypeScript",
    "cs": "C#",
    "sh": "Bash",
    "js": "JavaScript",
}


def prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, shots: Sequence[Problem] = ()) -> str:
    """What the model continues, to be tokenized without special tokens: the one that begins a text is there.

    shots: solved problems to show first, for MBPP; its evaluation shows MBPP/2, MBPP/3 and MBPP/4, and tests on MBPP/11
    to MBPP/510.

    Raises:
        ValueError: there are shots, and the problem is not MBPP's kind; or a shot has no solution.
    """
    check_shots(problem, shots)
    return opening(tokenizer) + _text(problem, shots)


def _text(problem: Problem, shots: Sequence[Problem]) -> str:
    if problem.cases:
        mark = COMMENTS.get(problem.language, "//")
        opening = "<?php\n" if problem.language == "php" else ""
        return opening + "".join(f"{mark} {line}".rstrip() + "\n" for line in problem.prompt.splitlines())
    if problem.standalone:
        solved = [f"{_mbpp(shot)}\n{clean(shot.solution)}\n[DONE]\n" for shot in shots]
        return "".join(solved) + _mbpp(problem)
    return problem.prompt


def _mbpp(problem: Problem) -> str:
    programmer = f"an expert {NAMES[problem.language]} programmer"
    task = f"You are {programmer}, and here is your task: {problem.prompt}"
    return f"{task} Your code should pass these tests:\n\n{problem.tests}\n[BEGIN]"


def check_shots(problem: Problem, shots: Sequence[Problem]) -> None:
    """Raises ValueError unless the shots can be shown before the problem."""
    if shots and (problem.cases or not problem.standalone):
        raise ValueError(
            f"problem {problem.name!r}: shots are only for problems in MBPP's format; leave the shots out."
        )
    for shot in shots:
        if shot.solution is None:
            raise ValueError(f"shot {shot.name!r} has no solution to show; use a problem that has a solution.")


def clean(solution: str | None) -> str:
    """A shot's solution as it is shown."""
    return (solution or "").replace("\r", "").replace("\t", "    ")


def stop_tokens(problem: Problem) -> tuple[str, ...]:
    """What ends a completion of `prompt(problem)`."""
    if problem.standalone:
        return () if problem.cases else MBPP_STOP_TOKENS
    return problem.stop_tokens


def source(problem: Problem, completion: str) -> str:
    """The program without its tests, from a completion that ends before the first of `stop_tokens(problem)`."""
    if not problem.standalone:
        return whole_program(problem, completion)
    text = completion if problem.cases else completion.strip()
    return f"<?php\n{text}" if problem.language == "php" and not text.startswith("<?php") else text


def answer(problem: Problem, solution: str) -> str:
    """The completion that has the solution: `source` gives the program back."""
    if problem.cases:
        return solution.removeprefix("<?php\n")
    return f"\n{clean(solution)}\n" if problem.standalone else solution
