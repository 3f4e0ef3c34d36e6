"""Outputs of programs on the prompt's inputs: examples read, inputs made, programs run apart from every test."""

import ast
import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rerankjax.candidates.candidate import Candidate
from rerankjax.loop import selection
from rerankjax.loop.config import SelectionConfig
from rerankjax.problems.examples import Example, examples, made_calls
from rerankjax.problems.family import completion, make_family, with_faults
from rerankjax.problems.problem import Problem, source
from rerankjax.prompts.ask import ProblemSet
from rerankjax.verdicts import outputs
from rerankjax.verdicts.execution import SandboxConfig
from rerankjax.verdicts.show import SHOWN_CHARACTERS, shown

SANDBOX = SandboxConfig(workers=2, cpu_seconds=2.0, wall_seconds=20.0)
HUMANEVAL = '''from typing import List

def helper(x):
    return x

def below(xs: List[int], t: int) -> bool:
    """ Are all below t? below(3, 4) is no example, and neither is below(xs, 4) == True.
    >>> below([1, 2], 3)
    True
    >>> below([5], t=3)
    False
    >>> helper(1)
    1
    below([], 0) == True
    For below([7], 2), return no. below([0], 1) ➞ True.
    """
'''


def test_examples_of_a_prompt_are_its_functions_alone() -> None:
    assert examples(HUMANEVAL) == (
        Example("below([1, 2], 3)", "True"),
        Example("below([5], t=3)", "False"),
        Example("below([], 0)", "True"),
        Example("below([0], 1)", "True"),
    )
    assert examples("Write a program that reads a number.") == ()
    assert examples("function f(x) { // f(2) == 4") == ()


def test_the_familys_example_is_read() -> None:
    family = make_family(0, 1, 1, 5)
    for problem in family.test:
        (example,) = examples(problem.prompt)
        assert f">>> {example.call}\n    {example.expected}\n" in problem.prompt


def test_an_assertion_gives_its_call_but_not_its_value() -> None:
    """MBPP's prompt shows all tests that decide: a rule that read their values would know what it is judged by."""
    shot = "assert other([1]) == 1\n[BEGIN]\ndef other(x): ...\n[DONE]\n"
    asserts = "assert set(count((1, 'a'), 2)) == set([3])\nassert not count((), -1)\nassert count(2 * 3) == 1"
    found = examples(f"{shot}Your code should pass these tests:\n\n{asserts}\n[BEGIN]")
    assert found == (Example("count((1, 'a'), 2)", None), Example("count((), -1)", None))


def test_made_inputs_keep_types_and_come_out_the_same() -> None:
    calls = ("f([1, 2], 'ab', (1, 2.5), flag=True)", "f([], '', (0, 1.0), flag=False)")
    made = made_calls(calls, 12)
    assert made == made_calls(calls, 12)
    assert len(set(made)) == 12
    assert not set(made) & set(calls)
    for text in made:
        call = ast.parse(text, mode="eval").body
        xs, s, pair = map(ast.literal_eval, call.args)
        assert all(type(x) is int for x in xs)
        assert (type(s), len(pair), [k.arg for k in call.keywords]) == (str, 2, ["flag"])
        assert type(ast.literal_eval(call.keywords[0].value)) is bool
    assert made_calls(("f()",), 5) == made_calls((), 5) == ()
    assert len(made_calls(("f(True)",), 5)) == 1


def test_values_that_tests_take_for_equal_have_one_text() -> None:
    assert shown({3, 1, 2}) == shown({2, 3, 1})
    assert shown({"b": 1, "a": [2.0]}) == shown({"a": [2], "b": 1})
    assert shown(0.1 + 0.2) == shown(0.3)
    assert len({shown(v) for v in ([1, 2], (1, 2), {1, 2}, "[1, 2]", 1, "1", None, object())}) == 8
    long = shown("a" * SHOWN_CHARACTERS)
    assert long == shown("a" * SHOWN_CHARACTERS) != shown("b" * SHOWN_CHARACTERS)
    assert len(long) < 20


def run(texts: list[str], calls: tuple[str, ...]) -> list[tuple[str | None, ...]]:
    inputs = {"p": outputs.Inputs(calls, ())}
    found, runs = outputs.run_outputs(SANDBOX, inputs, [("p", t) for t in texts], lambda _, text: text, {})
    assert runs == len(set(texts))
    return [found["p", text].values for text in texts]


def test_programs_show_what_they_give_and_how_they_fail() -> None:
    calls = ("f(1)", "f(0)", "f(-1)")
    texts = {
        "def f(x):\n    return 6 // x\n": ("6", "!ZeroDivisionError", "-6"),
        "def f(x):\n    print('noise', flush=True)\n    return {x, 2.0}\n": ("{1, 2}", "{0, 2}", "{-1, 2}"),
        "def f(x):\n    while x < 0: pass\n    return x\n": ("1", "0", None),  # its end does not undo what it gave
        "import os\ndef f(x):\n    os._exit(0)\n": (None, None, None),
        "def f(x:\n": (None, None, None),
        "def g(x):\n    return x\n": ("!NameError", "!NameError", "!NameError"),
        "def f(x):\n    raise SystemExit\n": ("!SystemExit",) * 3,
        "print = repr = ascii = None\ndef f(x):\n    return [x]\n": ("[1]", "[0]", "[-1]"),
    }
    assert run(list(texts), calls) == list(texts.values())


def test_all_that_fits_is_shown_to_the_end() -> None:
    calls = tuple(f"f({i})" for i in range(outputs.MOST_EXAMPLES + outputs.MOST_MADE))
    (values,) = run([f"def f(x):\n    return 'x' * {SHOWN_CHARACTERS - 2}\n"], calls)
    assert values == (ascii("x" * (SHOWN_CHARACTERS - 2)),) * len(calls)


def test_a_programs_lines_are_text_and_no_more() -> None:
    assert outputs.values_of("\0" + "0 a\n\0" + "5 b\n\0-1 c\n\0x d\n\0" + "9" * 5000 + " e\n1 f\n", 2) == ("a", None)
    assert outputs.values_of("unended\0" + "1 " + "y" * 5000, 2) == (None, "y" * SHOWN_CHARACTERS)


def test_hidden_tests_are_not_read() -> None:
    """The same prompts with other hidden tests: the same programs run, and the same outputs come out."""
    problems = make_family(0, 1, 1, 3).test
    poisoned = [dataclasses.replace(p, tests="\nraise SystemExit('read')\n", solution="poison") for p in problems]
    family = make_family(0, 1, 1, 3)
    texts = [
        [completion(p) for p in (family.references[q.name], *with_faults(family.references[q.name]))] for q in problems
    ]

    def found(of):
        by_name = {p.name: p for p in of}
        inputs = {p.name: outputs.inputs_of(p.language, p.prompt, 6) for p in of}
        written = [(p.name, text) for p, row in zip(of, texts, strict=True) for text in row]

        def whole(name: str, text: str) -> str:
            return source(by_name[name], text)

        for name, text in written:
            program = outputs.program_of(whole(name, text), inputs[name].calls)
            assert (program.tests, program.expected_output) == ("", "")
            hidden = [line for line in by_name[name].tests.splitlines() if "assert" in line]
            assert not any(line.strip() in program.source for line in hidden)
        return inputs, outputs.run_outputs(SANDBOX, inputs, written, whole, {})

    inputs, (first, runs) = found(problems)
    assert (inputs, (first, runs)) == found(poisoned)
    for problem, row in zip(problems, texts, strict=True):
        right = first[problem.name, row[0]].values
        assert right[0] == inputs[problem.name].expected[0]
        assert None not in right


def test_known_outputs_are_not_run_again_and_survive_the_file(tmp_path) -> None:
    inputs = {"p": outputs.Inputs(("f(2)",), ("4",)), "q": outputs.inputs_of("js", "f(2) == 4", 3)}
    programs = [
        ("p", "def f(x): return x * x"),
        ("p", "def f(x): return x"),
        ("q", "f = x => x"),
        ("p", "def f(x): return x"),
    ]
    first, runs = outputs.run_outputs(SANDBOX, inputs, programs[:1], lambda _, text: text, {})
    assert runs == 1
    both, runs = outputs.run_outputs(SANDBOX, inputs, programs, lambda _, text: text, first)
    assert runs == 1
    assert [both[key].values for key in programs] == [("4",), ("2",), (), ("2",)]
    outputs.write_outputs(tmp_path / "outputs.parquet", both.values())
    assert outputs.read_outputs(tmp_path / "outputs.parquet") == both


@pytest.mark.parametrize(("language", "prompt"), [("cpp", "// f(2) == 4"), ("py", "def f(x):\n")])
def test_what_has_no_inputs_says_so(language: str, prompt: str) -> None:
    assert outputs.inputs_of(language, prompt, 4) == outputs.Inputs((), ())


class Sealed(Problem):
    """A problem whose tests nobody can read."""

    def __getattribute__(self, name: str):
        if name in ("tests", "cases", "solution"):
            raise AssertionError(f"{name} was read")
        return super().__getattribute__(name)


def test_the_stage_reads_no_test(tmp_path) -> None:
    family = make_family(0, 1, 1, 3)
    sealed = tuple(Sealed(**vars(problem)) for problem in family.test)
    with pytest.raises(AssertionError, match="tests was read"):
        _ = sealed[0].tests
    references = [family.references[problem.name] for problem in sealed]
    ways = [(reference, *itertools.islice(with_faults(reference), 1), reference) for reference in references]
    sampled = [
        Candidate(problem.name, i, completion(way), -1.0, 5, True)
        for problem, row in zip(sealed, ways, strict=True)
        for i, way in enumerate(row)
    ]

    def stage(name: str, inputs: list[str], fill) -> Path:
        (tmp_path / name).mkdir(parents=True)
        fill(tmp_path / name, config)
        (tmp_path / name / "stage.json").write_text('{"seconds": 1.5}')
        return tmp_path / name

    config = SimpleNamespace(selection=SelectionConfig(made_inputs=6), sandbox=SANDBOX)
    problems = {"test": ProblemSet("completion", sealed, sealed)}
    run = SimpleNamespace(seed=0, problems=problems, config=config, stage=stage, path=lambda name: tmp_path / name)
    first = selection.outputs(run, "sft", "test", sampled)
    assert (first.covered, first.runs, first.seconds) == (3, 6, 1.5)
    assert first.reproduces[:, 0].all()
    assert (first.clusters[:, 0] == first.clusters[:, 2]).all()
    again = selection.outputs(run, "ppo", "test", sampled)  # another policy's samples, all of them known
    assert again.runs == 0
    np.testing.assert_array_equal(again.clusters, first.clusters)
