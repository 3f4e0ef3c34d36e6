"""The made-up family in eight languages: MultiPL-E's form, and every text does what its kind says, run for real."""

import hashlib
import re
from collections import Counter

import pytest

from rerankjax import sandbox
from rerankjax.problems.corpus import make_corpus
from rerankjax.problems.family import Call, Family, Program, completion, composition, make_family, run, with_faults
from rerankjax.problems.kinds import FINALS, STEPS
from rerankjax.problems.languages import SYNTAX, shared_stop_tokens
from rerankjax.problems.problem import Problem

OTHERS = tuple(SYNTAX)[1:]
KINDS = [kind for kind in STEPS + FINALS if kind.name in SYNTAX["sh"].idioms]


@pytest.fixture(scope="module")
def family() -> Family:
    return make_family(seed=0, train=800, dev=80, test=160, languages=tuple(SYNTAX))


def judge(*programs: sandbox.Program) -> list[sandbox.Result]:
    return sorted(sandbox.run(programs, workers=2), key=lambda result: result.index)


def as_program(problem: Problem, written: Program) -> sandbox.Program:
    source = problem.prompt + completion(written, problem.language)
    return sandbox.Program(problem.language, source, "\n" + problem.tests)


# MultiPL-E's HumanEval_85_add: the prompt from its example on, and the tests to the first assertion.
ADD = {
    "cpp": (
        "// >>> add((std::vector<long>({(long)4, (long)2, (long)6, (long)7})))\n// (2)\n"
        "long add(std::vector<long> lst) {\n",
        "}\nint main() {\n    auto candidate = add;\n"
        "    assert(candidate((std::vector<long>({(long)4, (long)88}))) == (88));\n",
    ),
    "java": (
        "    // >>> add((new ArrayList<Long>(Arrays.asList((long)4l, (long)2l, (long)6l, (long)7l))))\n    // (2l)\n"
        "    public static long add(ArrayList<Long> lst) {\n",
        "    }\n    public static void main(String[] args) {\n"
        "    assert(add((new ArrayList<Long>(Arrays.asList((long)4l, (long)88l)))) == (88l));\n",
    ),
    "php": (
        "// >>> add(array(4, 2, 6, 7))\n// 2\nfunction add($lst) {\n",
        "function candidate(...$args) {\n    return add(...$args);\n}\n\nfunction test(): void {\n"
        '    if (candidate(array(4, 88)) !== 88) { throw new Exception("Test failed!"); }\n',
    ),
    "ts": (
        "// >>> add([4, 2, 6, 7])\n// 2\nfunction add(lst: number[]): number {\n",
        "declare var require: any;\nconst assert = require('node:assert');\n\n\nfunction test() {\n"
        "  let candidate = add;\n  assert.deepEqual(candidate([4, 88]),88);\n",
    ),
    "cs": (
        "    // >>> Add((new List<long>(new long[]{(long)4L, (long)2L, (long)6L, (long)7L})))\n    // (2L)\n"
        "    public static long Add(List<long> lst) {\n",
        "    }\n    public static void Main(string[] args) {\n"
        "    Debug.Assert(Add((new List<long>(new long[]{(long)4L, (long)88L}))) == (88L));\n",
    ),
    "sh": (
        '# >>> $(add "4 2 6 7")\n# "2"\n#\n# $1 is a space-separated list\nadd() {\n',
        '}\n\ncandidate() {\n    add "$@"\n}\n\nset -e\nrun_test() {\n    [[ $(candidate "4 88") = "88" ]]\n',
    ),
    "js": (
        "// >>> add([4, 2, 6, 7])\n// 2\nfunction add(lst){\n",
        "const assert = require('node:assert');\n\n\nfunction test() {\n"
        "  let candidate = add;\n  assert.deepEqual(candidate([4, 88]),88);\n",
    ),
}


@pytest.mark.parametrize("language", OTHERS)
def test_prompts_and_tests_have_the_form_of_multipl_e(language: str) -> None:
    form = SYNTAX[language]
    prompt = form.prompt % ("?", form.list_of([4, 2, 6, 7]), form.answer % 2)
    tests = form.tests % (form.assertion % (form.list_of([4, 88]), form.answer % 88))
    renamed = [re.sub("add|Add|lst", lambda m: {"add": "f", "Add": "F"}.get(m[0], "x"), text) for text in ADD[language]]
    assert prompt.removesuffix("    set -- $1\n").endswith(renamed[0])
    assert tests.startswith(renamed[1])


def test_languages_share_a_split_and_take_turns(family: Family) -> None:
    splits = [{composition(family.references[p.name]) for p in ps} for ps in (family.train, family.dev, family.test)]
    assert len(splits[0] | splits[1] | splits[2]) == sum(map(len, splits))
    for problems in (family.train, family.dev, family.test):
        assert set(Counter(p.language for p in problems).values()) == {len(problems) // 8}
        assert all(p.name.startswith(f"lists_{p.language}_") for p in problems)


def test_a_larger_count_only_adds_problems(family: Family) -> None:
    fewer = make_family(seed=0, train=30, dev=3, test=9, languages=tuple(SYNTAX))
    assert (fewer.train, fewer.dev, fewer.test) == (family.train[:30], family.dev[:3], family.test[:9])


def test_problems_are_the_same_on_every_machine(family: Family) -> None:
    # A changed digest means that old runs and their figures no longer speak of the same problems.
    text = repr((family.train, family.dev, family.test, make_corpus(0, family, 800)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "98b789c09f82017f"


def test_every_language_has_the_same_kinds_and_faults() -> None:
    assert {kind.name for kind in STEPS} - {kind.name for kind in KINDS} == {"remainder", "truncate"}
    for language in OTHERS:
        idioms = SYNTAX[language].idioms
        assert idioms.keys() == {kind.name for kind in KINDS}
        assert all(len(idioms[kind.name]) == (2 if kind.fault else 1) for kind in KINDS)
        assert all(kind.takes_constant == ("{k}" in text) for kind in KINDS for text in idioms[kind.name])
        texts = [text for of_kind in idioms.values() for text in of_kind]
        # One text serves two kinds nowhere, so that no right one is a fault elsewhere.
        assert len(set(texts)) == len(texts)


def test_no_solution_holds_a_stop_token(family: Family) -> None:
    (stops,) = {p.stop_tokens for p in family.train + family.dev + family.test}
    language_of = {p.name: p.language for p in family.train}
    solutions = make_corpus(0, family, 3200)
    assert not [s for s in solutions if any(stop in s.completion for stop in stops)]
    assert {language_of[s.problem] for s in solutions} == SYNTAX.keys()


def test_stop_tokens_are_of_the_languages_asked_for() -> None:
    assert shared_stop_tokens(["cpp", "java"]) == ("\n}", "\n    }\n")
    assert shared_stop_tokens(["cpp", "js"]) == SYNTAX["js"].stop_tokens


def test_languages_that_cannot_be_are_refused() -> None:
    for languages in ((), ("py", "py"), ("rs",)):
        with pytest.raises(
            ValueError, match="languages must be one or more of py, cpp, java, php, ts, cs, sh, js, each once"
        ):
            make_family(0, 1, 0, 0, languages=languages)


LISTS = ((), (0,), (3, 3, -2), (-3, 4), (7, -2, 0, 3, 7, 7), (-8, -3, 1, 3, 2, 9, -7, 4))


def named(number: int, text: str) -> str:
    """The text with the function's name made f1, f2 and so on; the first stays f, which the tests mention."""
    return re.sub(r"\b(candidate|f|F)(?=[( ])", lambda m: f"{'F' if m[1] == 'F' else 'f'}{number or ''}", text)


def many_functions(language: str) -> sandbox.Program:
    """A program with a function for each text of each kind, and what the kind's `run` says as the tests."""
    form = SYNTAX[language]
    of_name = {kind.name: kind for kind in KINDS}
    written: list[Program] = []
    for kind in KINDS:
        for faulty in (False, True)[: 2 if kind.fault else 1]:
            call = Call(kind, 3 if kind.takes_constant else 0, faulty)
            # A sum by position tells lists apart.
            rest = () if kind in FINALS else (Call(of_name["positions"], 0), Call(of_name["sum"], 0))
            written.append((call, *rest))
    before, function = re.split(r"(?<=here)\n", form.prompt % ("", "", "here"))
    closing, tests = re.fullmatch(r"( *\}\n)?(.*)", form.tests, re.DOTALL).groups()  # type: ignore[union-attr]
    source, assertions = before + "\n", ""
    for number, calls in enumerate(written):
        source += named(number, function) + completion(calls, language) + "\n" + (closing or "")
        for x in LISTS:
            if (answer := run(calls, x)) is not None:
                assertion = form.assertion % (form.list_of(x), form.answer % answer)
                assertions += named(number, assertion)
    return sandbox.Program(language, source, tests % assertions)


def test_every_text_does_what_its_kind_says() -> None:
    programs = [many_functions(language) for language in OTHERS]
    for result in judge(*programs):
        assert result.verdict is sandbox.Verdict.PASSED, (OTHERS[result.index], result.stderr)


def test_references_pass_and_faults_are_caught(family: Family) -> None:
    """In each language with both finals that fail on an empty list, whose faults no kind's `run` returns."""
    programs: list[tuple[Problem, Program, bool]] = []
    for language in SYNTAX:
        of_language = [(p, family.references[p.name]) for p in family.train if p.language == language]
        for final in ("greatest", "end"):
            problem, reference = next(
                (p, calls)
                for p, calls in of_language
                if calls[-1].kind.name == final and sum(call.kind.fault is not None for call in calls) == 1
            )
            programs += [(problem, reference, True), *((problem, calls, False) for calls in with_faults(reference))]
    for result in judge(*(as_program(problem, calls) for problem, calls, _ in programs)):
        problem, calls, passes = programs[result.index]
        said = (completion(calls, problem.language), result.stderr)
        assert (result.verdict is sandbox.Verdict.PASSED) == passes, said
        assert result.verdict is not sandbox.Verdict.COMPILE_ERROR, said
