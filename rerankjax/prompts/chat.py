"""Prompts for instruct models and programs from their answers, as DeepSeek-Coder's own evaluation has them.

Source: github.com/deepseek-ai/DeepSeek-Coder, Evaluation/HumanEval/{eval_instruct.py, utils/utils.py} and, for MBPP,
Evaluation/MBPP/eval_instruct.py. It decodes greedily, 1,024 new tokens, until the model ends its turn: no stop tokens.
CodeContests it does not evaluate; those words are ours.

An answer's first code block is taken, the function cut out of it and put below the prompt's own first lines. The cut is
theirs except for three things: a block may be marked with a language's other names (```js), a Python function is not
cut at a brace, and one written in a single line gets no second closing brace. Their faults are
kept, so that figures compare: helpers above the function are lost, and a C# Main that is not public stays in.
"""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rerankjax.problems.problem import Problem
from rerankjax.prompts.completion import check_shots, clean

# What DeepSeek's evaluation puts before Python programs, less numpy, which the sandbox does not have.
PYTHON_IMPORTS = """\
import math
import re
import sys
import copy
import datetime
import itertools
import collections
import heapq
import functools
import hashlib
import string
from typing import *
from collections import *
"""

COMPLETE = (
    "Please continue to complete the function. You are not allowed to modify the given code and do the completion "
    "only. Please return all completed function in a codeblock. Here is the given code to do completion:\n"
    "```{language}\n{code}\n```"
)
MBPP_ALONE = "Please generate a {language} function for my problem.\n{problem}"
MBPP = (
    "Please refer the given examples and generate a {language} function for my problem.\n"
    "Examples are listed as follows:\n{examples}\n\nHere is my problem:\n{problem}"
)
WHOLE_PROGRAM = (
    "{description}\n\nPlease write a program in {language} that reads the input from standard input and writes the "
    "output to standard output. Please return all of it in a codeblock."
)
# What marks a code block: the name that is asked for, then others.
FENCES = {
    "py": ("python", "py", "python3"),
    "cpp": ("cpp", "c++"),
    "java": ("java",),
    "php": ("php",),
    "ts": ("typescript", "ts"),
    "cs": ("csharp", "cs", "c#"),
    "sh": ("bash", "sh", "shell"),
    "js": ("javascript", "js"),
}
# Where the answer's own tests begin. The problem's tests begin by closing the function, but in CLOSED_BY_ANSWER.
MAIN = {"cpp": "int main()", "java": "public static void main", "cs": "public static void Main"}
CLOSED_BY_ANSWER = ("php", "ts", "js")
CLOSINGS = {"cpp": "\n}", "sh": "\n}", "java": "\n    }\n}", "cs": "\n    }\n}"}  # what a function's tests begin with
INDENT_OF_UNFOUND = {"java": 4}  # columns before a function that does not begin as the prompt's


def prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, shots: Sequence[Problem] = ()) -> str:
    """The chat up to the model's turn, to be tokenized without special tokens: the template has put them there.

    shots: solved problems, for MBPP; its evaluation shows MBPP/2, MBPP/3 and MBPP/4, and tests on MBPP/11 to MBPP/510.

    Raises:
        ValueError: the tokenizer has no chat template; shots are given and not for this problem.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            'the tokenizer has no chat template: use an instruct model\'s checkpoint, or the style "completion"'
        )
    check_shots(problem, shots)
    turn = [{"role": "user", "content": _request(problem, shots)}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def _request(problem: Problem, shots: Sequence[Problem]) -> str:
    language = FENCES[problem.language][0]
    if problem.cases:
        return WHOLE_PROGRAM.format(description=problem.prompt.strip(), language=language)
    if not problem.standalone:
        return COMPLETE.format(language=language, code=problem.prompt.strip())
    if not shots:
        return MBPP_ALONE.format(language=language, problem=_mbpp(problem))
    examples = [
        f"- Example {i}:\n{_mbpp(shot)}\n>>> Code:\n```{FENCES[shot.language][0]}\n{clean(shot.solution)}\n```"
        for i, shot in enumerate(shots, start=1)
    ]
    return MBPP.format(language=language, examples="\n\n".join(examples), problem=_mbpp(problem))


def _mbpp(problem: Problem) -> str:
    return f">>> Problem:\n{problem.prompt}\n>>> Test Cases:\n{problem.tests}\n"


def answer(problem: Problem, solution: str) -> str:
    """A model's answer that has the solution in a code block, a function whole: `source` finds it there."""
    if not problem.standalone:
        solution = problem.prompt + solution.rstrip() + CLOSINGS.get(problem.language, "")
    return f"```{FENCES[problem.language][0]}\n{solution.strip()}\n```"


def source(problem: Problem, answer: str) -> str:
    """The program without its tests, from a model's answer. An answer without a code block continues the prompt."""
    names = "|".join(map(re.escape, FENCES[problem.language]))
    block = re.search(rf"```(?:{names})[ \t]*\n(.*?)```", answer, re.DOTALL | re.IGNORECASE)
    if problem.standalone:
        text = block[1] if block else answer
    elif block:
        text = _function(problem, block[1])
    else:
        text = f"{problem.prompt}\n{answer}"
    if problem.language == "php" and not text.startswith("<?php"):
        text = f"<?php\n{text}"
    return PYTHON_IMPORTS + text if problem.language == "py" and not problem.standalone else text


def _function(problem: Problem, block: str) -> str:
    """The prompt's lines above its function, then the block from there on: without a main, and open at its end where
    the tests close it."""
    head, signature = _signature(problem)
    if problem.language in MAIN:
        block = block.split(MAIN[problem.language])[0]
    start = block.lower().find(signature.lower())
    before = block[: max(start, 0)]
    indent = len(before) - len(before.rstrip(" ")) if start >= 0 else INDENT_OF_UNFOUND.get(problem.language, 0)
    body = block[len(before) :]
    closing = "\n" + " " * indent + "}"
    end = body.rfind(closing)
    if end >= 0 and problem.language != "py":
        body = body[: end + len(closing) if problem.language in CLOSED_BY_ANSWER else end]
    return f"{head}\n{body}\n"


def _signature(problem: Problem) -> tuple[str, str]:
    """The prompt's lines above the function that it begins, and the text by which that is found in an answer."""
    lines = [line for line in problem.prompt.strip().split("\n") if line.strip()] or [""]
    if problem.language != "py":
        return "\n".join(lines[:-1]), lines[-1].split("{")[0].strip()
    index = max((i for i, line in enumerate(lines) if line.startswith("def ")), default=0)
    return "\n".join(lines[:index]), lines[index].split("(")[0].strip()


def stop_tokens(problem: Problem) -> tuple[str, ...]:
    """None: the model ends its turn."""
    return ()
