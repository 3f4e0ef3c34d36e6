"""Prompts are DeepSeek-Coder's, and programs come whole out of completions and answers."""

import dataclasses

import pytest
from transformers import PreTrainedTokenizerFast

from rerankjax import sandbox
from rerankjax.problems.problem import LANGUAGES, Case, Problem
from rerankjax.prompts import base, instruct
from rerankjax.prompts.tokenizer import train_tokenizer
from rerankjax.verdicts.execution import programs_of

# In MultiPL-E's shape: prompt, body, what closes it, tests.
PARTS = {
    "py": (
        'def twice(x: int) -> int:\n    """Return twice x.\n    >>> twice(2)\n    4\n    """\n',
        "    return 2 * x",
        "",
        "def check(f):\n    assert f(3) == 6\n\ncheck(twice)\n",
    ),
    "cpp": (
        "#include<assert.h>\n#include<bits/stdc++.h>\n// Return twice x.\nlong twice(long x) {\n",
        "    return 2 * x;",
        "\n}",
        "}\nint main() {\n    auto candidate = twice;\n    assert(candidate((3)) == (6));\n}\n",
    ),
    "java": (
        "import java.util.*;\nclass Problem {\n    // Return twice x.\n    public static long twice(long x) {\n",
        "        return 2 * x;",
        "\n    }\n}",
        "    }\n    public static void main(String[] args) {\n    assert(twice((3l)) == (6l));\n    }\n\n}\n",
    ),
    "php": (
        "<?php\n// Return twice x.\nfunction twice($x) {\n",
        "    return 2 * $x;",
        "\n}",
        "function candidate(...$args) {\n    return twice(...$args);\n}\n\nfunction test(): void {\n    if (candidate(3)"
        ' !== 6) { throw new Exception("Test failed!"); }\n}\n\ntest();',
    ),
    "ts": (
        "//Return twice x.\nfunction twice(x: number): number {\n",
        "    return 2 * x;",
        "\n}",
        "declare var require: any;\nconst assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = twice;"
        "\n  assert.deepEqual(candidate(3),6);\n}\n\ntest();",
    ),
    "cs": (
        "using System;\nusing System.Diagnostics;\nclass Problem {\n    // Return twice x.\n    public static long Twice("
        "long x) {\n",
        "        return 2L * x;",
        "\n    }\n}",
        "    }\n    public static void Main(string[] args) {\n    Debug.Assert(Twice((3L)) == (6L));\n    }\n\n}\n",
    ),
    "sh": (
        "#!/bin/bash\n# Return twice x.\n#\n# $1 is an integer\ntwice() {\n",
        '    echo "$(( 2 * $1 ))"',
        "\n}",
        '}\n\ncandidate() {\n    twice "$@"\n}\n\nset -e\nrun_test() {\n    [[ $(candidate "3") = "6" ]]\n}\n\nrun_test',
    ),
    "js": (
        "//Return twice x.\nfunction twice(x){\n",
        "    return 2 * x;",
        "\n}",
        "const assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = twice;\n  assert.deepEqual("
        "candidate(3),6);\n}\n\ntest();",
    ),
}
MAINS = {
    "cpp": "\n\nint main() {\n    std::cout << twice(2);\n    return 0;\n}",
    "java": "\n\n    public static void main(String[] args) {\n        System.out.println(twice(2));\n    }\n}",
    "cs": "\n\n    public static void Main(string[] args) {\n        Console.WriteLine(Twice(2));\n    }\n}",
}
PROBLEMS = {
    language: Problem(language, language, prompt, tests, ("\n}",)) for language, (prompt, _, _, tests) in PARTS.items()
}
MBPP = Problem("MBPP/11", "py", "Write a function to double x.", "assert f(1) == 2", (), standalone=True)
SHOT = Problem(
    "MBPP/2", "py", "Halve x.", "assert g(2) == 1", (), standalone=True, solution="def g(x):\r\n\treturn x // 2"
)
CONTEST = Problem("c", "cpp", "Read x.\n\nPrint 2x.\n", "", (), standalone=True, cases=(Case("3\n", "6\n"),))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = train_tokenizer([p.prompt for p in PROBLEMS.values()], 300)
    made.add_special_tokens({"bos_token": "<bos>"})
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<end>{% endfor %}"
        "{% if add_generation_prompt %}[model]{% endif %}"
    )
    return made


def answer(language: str, wrong: bool = False) -> str:
    """As instruct models write: words, the whole code in a block with a main of its own, more words, more code."""
    prompt, body, closing, _ = PARTS[language]
    body = body.replace("2", "5") if wrong else body
    end = closing.removesuffix("\n}") + MAINS[language] if language in ("java", "cs") else closing
    code = prompt + body + end + (MAINS["cpp"] if language == "cpp" else "")
    name = instruct.FENCES[language][0]
    return f"Here it is:\n```{name}\n{code}\n```\nIt is used so:\n```{name}\ntwice(2)\n```\n"


def verdicts(sources: dict[str, str]) -> dict[str, str]:
    programs = [sandbox.Program(language, text, "\n" + PARTS[language][3]) for language, text in sources.items()]
    results = {r.index: str(r.verdict) for r in sandbox.run(programs, workers=2)}
    return {language: results[i] for i, language in enumerate(sources)}


def test_answers_become_programs_that_pass_if_right() -> None:
    assert verdicts({g: instruct.source(PROBLEMS[g], answer(g)) for g in LANGUAGES}) == dict.fromkeys(
        LANGUAGES, "passed"
    )
    quick = ("py", "sh", "php", "js")
    wrong = verdicts({g: instruct.source(PROBLEMS[g], answer(g, wrong=True)) for g in quick})
    assert "passed" not in wrong.values()


def test_completions_become_programs_that_pass_if_right() -> None:
    for language in LANGUAGES:
        prompt, body, closing, _ = PARTS[language]
        text = base.source(PROBLEMS[language], body + (closing if language in instruct.CLOSED_BY_ANSWER else ""))
        imports = base.PYTHON_IMPORTS if language == "py" else ""
        assert text.split("\n", text.count("\n"))[0] == (imports + prompt).split("\n")[0]
        assert instruct.source(PROBLEMS[language], answer(language)).split() == text.split(), language


@pytest.mark.parametrize("language", LANGUAGES)
def test_functions_are_cut_from_answers_of_any_form(language: str) -> None:
    problem, right = PROBLEMS[language], answer(language)
    expected = instruct.source(problem, right)
    for name in instruct.FENCES[language]:
        assert instruct.source(problem, right.replace(f"```{instruct.FENCES[language][0]}", f"```{name}")) == expected
        assert instruct.source(problem, right.replace(f"```{instruct.FENCES[language][0]}", f"```{name.upper()}")) == (
            expected
        )
    # The prompt's comments need not be there again, nor what is above the function.
    prompt, body, closing, _ = PARTS[language]
    lines = prompt.splitlines()
    definition = next(i for i, line in enumerate(lines) if "twice" in line.lower() and line.strip()[0] not in "/#")
    short = "\n".join(lines[definition:]) + "\n" + body + closing
    assert instruct.source(problem, f"```{instruct.FENCES[language][0]}\n{short}\n```").split() == expected.split()
    # Without a block of the language the answer is what follows the prompt.
    for text in (body, f"```ruby\n{body}\n```", right[: right.rindex("```", 0, right.index("It is"))]):
        plain = instruct.source(problem, text)
        assert plain.endswith(f"{problem.prompt}\n{text}")


def test_prompts_of_functions(tokenizer: PreTrainedTokenizerFast) -> None:
    names = ("python", "cpp", "java", "php", "typescript", "csharp", "bash", "javascript")
    for language, name in zip(LANGUAGES, names, strict=True):
        problem = PROBLEMS[language]
        assert base.prompt(problem, tokenizer) == f"<bos>{problem.prompt.strip()}"
        text = instruct.prompt(problem, tokenizer)
        assert text.startswith("<bos>[user]Please continue to complete the function. You are not allowed to modify")
        assert text.endswith(f"do completion:\n```{name}\n{problem.prompt.strip()}\n```<end>[model]")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids.count(tokenizer.bos_token_id) == 1
    assert base.stop_tokens(PROBLEMS["cpp"]) == ("\n}",)
    assert base.stop_tokens(PROBLEMS["ts"]) == ("\n}", "\nexport", "\nimport", "\nconsole.log")


def test_prompts_of_mbpp(tokenizer: PreTrainedTokenizerFast) -> None:
    task = "You are an expert Python programmer, and here is your task: "
    asked = f"{task}Write a function to double x. Your code should pass these tests:\n\nassert f(1) == 2\n[BEGIN]"
    shown = (
        f"{task}Halve x. Your code should pass these tests:\n\nassert g(2) == 1\n[BEGIN]\n"
        "def g(x):\n    return x // 2\n[DONE]\n"
    )
    assert base.prompt(MBPP, tokenizer) == f"<bos>{asked}"
    assert base.prompt(MBPP, tokenizer, [SHOT, SHOT]) == f"<bos>{shown}{shown}{asked}"
    assert base.stop_tokens(MBPP) == ("[DONE]",)
    assert instruct.prompt(MBPP, tokenizer, [SHOT]) == (
        "<bos>[user]Please refer the given examples and generate a python function for my problem.\nExamples are listed"
        " as follows:\n- Example 1:\n>>> Problem:\nHalve x.\n>>> Test Cases:\nassert g(2) == 1\n\n>>> Code:\n```python\n"
        "def g(x):\n    return x // 2\n```\n\nHere is my problem:\n>>> Problem:\nWrite a function to double x.\n>>> Test"
        " Cases:\nassert f(1) == 2\n<end>[model]"
    )
    program = "def f(x):\n    return 2 * x\n"
    assert instruct.source(MBPP, f"So:\n```python\n{program}```\n") == program
    assert base.source(MBPP, f"\n{program}") == program.strip()
    for source in (program, base.source(MBPP, program)):
        (whole,) = programs_of(MBPP, source)
        exec(whole.source + whole.tests, {})


def test_prompts_of_contests(tokenizer: PreTrainedTokenizerFast) -> None:
    assert base.prompt(CONTEST, tokenizer) == "<bos>// Read x.\n//\n// Print 2x.\n"
    assert base.stop_tokens(CONTEST) == ()
    text = instruct.prompt(CONTEST, tokenizer)
    assert text.startswith("<bos>[user]Read x.\n\nPrint 2x.\n\nPlease write a program in cpp")
    program = "#include <iostream>\nint main() {\n}\n"
    assert instruct.source(CONTEST, f"```cpp\n{program}```") == base.source(CONTEST, program) == program


def test_wrong_requests_say_what_to_change(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="problem 'MBPP/11': shots are missing; show MBPP/2"):
        instruct.prompt(MBPP, tokenizer)
    for prompt in (base.prompt, instruct.prompt):
        for problem in (PROBLEMS["py"], CONTEST):
            with pytest.raises(ValueError, match="shots are for MBPP's kind of problem"):
                prompt(problem, tokenizer, [SHOT])
        with pytest.raises(ValueError, match="shot 'MBPP/11' has no solution"):
            prompt(MBPP, tokenizer, [MBPP])
    plain = train_tokenizer(["a"], 260)
    assert base.prompt(PROBLEMS["js"], plain) == PROBLEMS["js"].prompt.strip()
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        instruct.prompt(MBPP, plain, [SHOT])


@pytest.mark.parametrize("language", instruct.FENCES)
def test_a_solution_in_an_answer_is_found_again(language: str) -> None:
    whole = dataclasses.replace(CONTEST, language=language)
    text = "<?php\nread();" if language == "php" else "read();\n    then();"
    assert instruct.source(whole, instruct.answer(whole, f"\n{text}\n")) == f"{text}\n"
