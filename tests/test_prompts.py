"""Prompts are MultiPL-E's and DeepSeek-Coder's, and programs come whole out of completions and answers."""

import dataclasses
import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rerankjax import sandbox
from rerankjax.problems.problem import LANGUAGES, Case, Problem
from rerankjax.prompts import chat, completion
from rerankjax.prompts.ask import STYLES, PromptConfig, ask
from rerankjax.prompts.tokenizer import begin_texts, load_tokenizer, train_tokenizer
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
MBPP_SOLUTION = "def f(x):\r\n\treturn 2 * x"
PHP_TASK = Problem("t", "php", "Double x.", "if (f(1) !== 2) { exit(1); }", (), standalone=True)
SHOT = Problem(
    "MBPP/2", "py", "Halve x.", "assert g(2) == 1", (), standalone=True, solution="def g(x):\r\n\treturn x // 2"
)
CONTEST = Problem("c", "cpp", "Read x.\n\nPrint 2x.\n", "", (), standalone=True, cases=(Case("3\n", "6\n"),))

WHOLE = {
    "py": "print(2 * int(input()))",
    "sh": 'read n\necho "$(( 2 * n ))"',
    "php": '<?php\necho 2 * (int) fgets(STDIN), "\\n";',
    "cpp": "#include <iostream>\nint main() {\n    long n;\n    std::cin >> n;\n    std::cout << 2 * n;\n}\n",
    "js": "console.log(2 * require('fs').readFileSync(0, 'utf8'));",
    "ts": "declare var require: any;\nconsole.log(2 * +require('fs').readFileSync(0, 'utf8'));",
    "java": "import java.util.*;\npublic class Main {\n    public static void main(String[] args) {\n"
    "        System.out.println(2 * new Scanner(System.in).nextInt());\n    }\n}\n",
    "cs": "using System;\npublic class Any {\n    public static void Main() {\n"
    "        Console.WriteLine(2 * int.Parse(Console.ReadLine()));\n    }\n}\n",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = train_tokenizer([p.prompt for p in PROBLEMS.values()], 300)
    made.add_special_tokens({"bos_token": "<bos>"})
    begin_texts(made)
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
    name = chat.FENCES[language][0]
    return f"Here it is:\n```{name}\n{code}\n```\nIt is used so:\n```{name}\ntwice(2)\n```\n"


def verdicts(programs: dict[Any, tuple[Problem, str]]) -> dict[Any, str]:
    """What the sandbox says of programs without their tests, each of a problem."""
    whole = [program for problem, text in programs.values() for program in programs_of(problem, text)]
    results = {r.index: str(r.verdict) for r in sandbox.run(whole, workers=2)}
    return {key: results[i] for i, key in enumerate(programs)}


def test_answers_become_programs_that_pass_if_right() -> None:
    right = {g: (PROBLEMS[g], chat.source(PROBLEMS[g], answer(g))) for g in LANGUAGES}
    assert verdicts(right) == dict.fromkeys(LANGUAGES, "passed")
    quick = ("py", "sh", "php", "js")
    wrong = verdicts({g: (PROBLEMS[g], chat.source(PROBLEMS[g], answer(g, wrong=True))) for g in quick})
    assert "passed" not in wrong.values()


def solution(language: str) -> str:
    """A completion of the prompt, as MultiPL-E's stop tokens leave it."""
    _, body, closing, _ = PARTS[language]
    return body + (closing if language in chat.CLOSED_BY_ANSWER else "")


def test_a_solution_passes_in_what_a_model_would_write() -> None:
    """In either style, for functions of all languages, programs that read and print, and MBPP's kind."""
    given = {language: (PROBLEMS[language], solution(language)) for language in LANGUAGES}
    given |= {f"{g}-whole": (dataclasses.replace(CONTEST, language=g), WHOLE[g]) for g in LANGUAGES}
    given |= {"mbpp": (MBPP, MBPP_SOLUTION), "php-mbpp": (PHP_TASK, "<?php\nfunction f($x) { return 2 * $x; }")}
    programs = {
        (style, name): (problem, way.source(problem, way.answer(problem, text)))
        for style, way in STYLES.items()
        for name, (problem, text) in given.items()
    }
    # What is the same need not run twice.
    distinct = {(problem, text): key for key, (problem, text) in programs.items()}
    found = verdicts({key: programs[key] for key in distinct.values()})
    assert found == dict.fromkeys(distinct.values(), "passed")


def test_completions_continue_the_prompt_as_it_is() -> None:
    for language in LANGUAGES:
        problem, text = PROBLEMS[language], solution(language)
        assert completion.source(problem, text) == problem.prompt + text
        assert completion.answer(problem, text) == text
        imports = chat.PYTHON_IMPORTS if language == "py" else ""
        assert chat.source(problem, answer(language)).split() == (imports + problem.prompt + text).split(), language


@pytest.mark.parametrize("language", LANGUAGES)
def test_functions_are_cut_from_answers_of_any_form(language: str) -> None:
    problem, right = PROBLEMS[language], answer(language)
    expected = chat.source(problem, right)
    for name in chat.FENCES[language]:
        assert chat.source(problem, right.replace(f"```{chat.FENCES[language][0]}", f"```{name}")) == expected
        assert chat.source(problem, right.replace(f"```{chat.FENCES[language][0]}", f"```{name.upper()}")) == (expected)
    # The prompt's comments need not be there again, nor what is above the function.
    prompt, body, closing, _ = PARTS[language]
    lines = prompt.splitlines()
    definition = next(i for i, line in enumerate(lines) if "twice" in line.lower() and line.strip()[0] not in "/#")
    short = "\n".join(lines[definition:]) + "\n" + body + closing
    assert chat.source(problem, f"```{chat.FENCES[language][0]}\n{short}\n```").split() == expected.split()
    # Without a block of the language the answer is what follows the prompt.
    for text in (body, f"```ruby\n{body}\n```", right[: right.rindex("```", 0, right.index("It is"))]):
        plain = chat.source(problem, text)
        assert plain.endswith(f"{problem.prompt}\n{text}")


def test_prompts_of_functions(tokenizer: PreTrainedTokenizerFast) -> None:
    names = ("python", "cpp", "java", "php", "typescript", "csharp", "bash", "javascript")
    for language, name in zip(LANGUAGES, names, strict=True):
        problem = PROBLEMS[language]
        assert completion.prompt(problem, tokenizer) == f"<bos>{problem.prompt}"
        text = chat.prompt(problem, tokenizer)
        assert text.startswith("<bos>[user]Please continue to complete the function. You are not allowed to modify")
        assert text.endswith(f"do completion:\n```{name}\n{problem.prompt.strip()}\n```<end>[model]")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids.count(tokenizer.bos_token_id) == 1
        assert completion.stop_tokens(problem) == problem.stop_tokens == ("\n}",)
        assert chat.stop_tokens(problem) == ()


def test_prompts_of_mbpp(tokenizer: PreTrainedTokenizerFast) -> None:
    task = "You are an expert Python programmer, and here is your task: "
    asked = f"{task}Write a function to double x. Your code should pass these tests:\n\nassert f(1) == 2\n[BEGIN]"
    shown = (
        f"{task}Halve x. Your code should pass these tests:\n\nassert g(2) == 1\n[BEGIN]\n"
        "def g(x):\n    return x // 2\n[DONE]\n"
    )
    assert completion.prompt(MBPP, tokenizer) == f"<bos>{asked}"
    assert completion.prompt(MBPP, tokenizer, [SHOT, SHOT]) == f"<bos>{shown}{shown}{asked}"
    assert completion.stop_tokens(MBPP) == ("[DONE]",)
    assert chat.prompt(MBPP, tokenizer) == (
        "<bos>[user]Please generate a python function for my problem.\n>>> Problem:\nWrite a function to double x.\n>>>"
        " Test Cases:\nassert f(1) == 2\n<end>[model]"
    )
    assert chat.prompt(MBPP, tokenizer, [SHOT]) == (
        "<bos>[user]Please refer the given examples and generate a python function for my problem.\nExamples are listed"
        " as follows:\n- Example 1:\n>>> Problem:\nHalve x.\n>>> Test Cases:\nassert g(2) == 1\n\n>>> Code:\n```python\n"
        "def g(x):\n    return x // 2\n```\n\nHere is my problem:\n>>> Problem:\nWrite a function to double x.\n>>> Test"
        " Cases:\nassert f(1) == 2\n<end>[model]"
    )
    program = "def f(x):\n    return 2 * x\n"
    assert chat.source(MBPP, f"So:\n```python\n{program}```\n") == program
    assert completion.source(MBPP, f"\n{program}") == program.strip()
    for source in (program, completion.source(MBPP, program)):
        (whole,) = programs_of(MBPP, source)
        exec(whole.source + whole.tests, {})


def test_a_task_in_words_names_its_language(tokenizer: PreTrainedTokenizerFast) -> None:
    assert "an expert PHP programmer," in completion.prompt(PHP_TASK, tokenizer)
    assert "generate a php function" in chat.prompt(PHP_TASK, tokenizer)
    assert completion.source(PHP_TASK, "\nreturn;\n") == "<?php\nreturn;"


def test_prompts_of_contests(tokenizer: PreTrainedTokenizerFast) -> None:
    assert completion.prompt(CONTEST, tokenizer) == "<bos>// Read x.\n//\n// Print 2x.\n"
    assert completion.stop_tokens(CONTEST) == ()
    text = chat.prompt(CONTEST, tokenizer)
    assert text.startswith("<bos>[user]Read x.\n\nPrint 2x.\n\nPlease write a program in cpp")
    program = "#include <iostream>\nint main() {\n}\n"
    assert chat.source(CONTEST, f"```cpp\n{program}```") == completion.source(CONTEST, program) == program


def test_wrong_requests_say_what_to_change(tokenizer: PreTrainedTokenizerFast) -> None:
    for prompt in (completion.prompt, chat.prompt):
        for problem in (PROBLEMS["py"], CONTEST):
            with pytest.raises(ValueError, match="shots are only for problems in MBPP's format"):
                prompt(problem, tokenizer, [SHOT])
        with pytest.raises(ValueError, match="shot 'MBPP/11' has no solution"):
            prompt(MBPP, tokenizer, [MBPP])
    plain = train_tokenizer(["a"], 260)
    assert completion.prompt(PROBLEMS["js"], plain) == PROBLEMS["js"].prompt
    with pytest.raises(ValueError, match=r'the tokenizer has no chat template: .* or the style "completion"'):
        ask([MBPP], "chat", plain)
    with pytest.raises(ValueError, match='style = "instruct" is unknown: use one of completion, chat'):
        PromptConfig("instruct")


@pytest.mark.parametrize("language", chat.FENCES)
def test_a_solution_in_an_answer_is_found_again(language: str) -> None:
    whole = dataclasses.replace(CONTEST, language=language)
    text = "<?php\nread();" if language == "php" else "read();\n    then();"
    assert chat.source(whole, chat.answer(whole, f"\n{text}\n")) == f"{text}\n"


@pytest.mark.parametrize("style", STYLES)
def test_problems_are_asked_and_answered_by_name(tokenizer: PreTrainedTokenizerFast, style: str) -> None:
    way = STYLES[style]
    originals = (PROBLEMS["cpp"], MBPP, CONTEST)
    asked = ask(originals, style, tokenizer, [SHOT])
    assert asked.originals == originals
    for original, problem in zip(originals, asked.asked, strict=True):
        shots = [SHOT] if original is MBPP else []  # of its kind alone
        assert problem.prompt == way.prompt(original, tokenizer, shots)
        assert problem.stop_tokens == way.stop_tokens(original)
        assert dataclasses.replace(problem, prompt=original.prompt, stop_tokens=original.stop_tokens) == original
        assert asked.original(original.name) is original
        assert original.name in asked
        written = asked.answer(original.name, "solve();")
        assert written == way.answer(original, "solve();")
        assert asked.source(original.name, written) == way.source(original, written)
    assert "nobody" not in asked
    assert [asked.first(count).originals for count in (0, 1, 2)] == [originals, originals[:1], originals[:2]]
    assert asked.first(2).asked == asked.asked[:2]
    kept = asked.where([False, True, True])
    assert (kept.originals, kept.asked) == (originals[1:], asked.asked[1:])
    assert "cpp" not in kept
    assert kept.source("MBPP/11", written) == asked.source("MBPP/11", written)


def test_a_text_begins_with_a_token_only_where_its_tokenizer_says_so(tmp_path):
    """Chat models name a token that begins their turns; a text that is continued does not begin with it."""
    problem = Problem("p", "py", "def f(x):\n", "assert f(1)", ())
    tokenizer = train_tokenizer(["some text"], 300)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    assert completion.prompt(problem, tokenizer) == problem.prompt
    for adds in (True, False):
        tokenizer.save_pretrained(tmp_path)
        config = tmp_path / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"add_bos_token": adds}))
        loaded = load_tokenizer(tmp_path)
        assert completion.prompt(problem, loaded) == ("<bos>" if adds else "") + problem.prompt
        loaded.save_pretrained(tmp_path / "again")
        assert completion.prompt(problem, load_tokenizer(tmp_path / "again")) == completion.prompt(problem, loaded)
