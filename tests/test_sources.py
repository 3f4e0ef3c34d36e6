"""Benchmarks: real files load whole, and broken ones name what is wrong; what is tested on is not trained on."""

import dataclasses
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from rerankjax.candidates.candidate import Candidate
from rerankjax.problems.benchmarks import PYTHON_STOP_TOKENS
from rerankjax.problems.decontamination import decontaminate, words
from rerankjax.problems.problem import (
    LANGUAGES,
    Case,
    Problem,
    program,
    read_problems,
    require_trainable,
    write_problems,
)
from rerankjax.problems.sources import SourceConfig, load_problems
from rerankjax.sandbox import Verdict
from rerankjax.verdicts.execution import SandboxConfig, execute, verdict_cache

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside the repository")

# Made up, in the benchmarks' shapes: real rows stay where they are.
MULTIPL_E = {
    "name": "Made_0_twice",
    "language": "js",
    "prompt": "//Return twice x.\n// >>> twice(2)\n// 4\nfunction twice(x){\n",
    "doctests": "transform",
    "prompt_terminology": "reworded",
    "tests": "const assert = require('node:assert');\nassert.deepEqual(twice(3),6);\n",
    "stop_tokens": ["\nfunction ", "\n/*"],
}
HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": 'def twice(x):\n    """ Return twice x. """\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "\n\ndef check(candidate):\n    assert candidate(3) == 6\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to return twice x.",
    "code": "def twice(x):\r\n\treturn 2 * x",
    "test_setup_code": "",
    "test_list": ["assert twice(3) == 6", "assert twice(0) == 0"],
    "challenge_test_list": [],
}
SANITIZED = {
    "task_id": 12,
    "prompt": "Write a function to return the root of x.",
    "code": "import math\ndef root(x):\n    return math.sqrt(x)",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(root(4), 2)"],
}
CODE_CONTESTS = {
    "name": "1_A. Twice",
    "source": 2,
    "description": "Print twice the number that is given.\n",
    "public_tests": {"input": ["3\n"], "output": ["6\n"]},
    "private_tests": {"input": ["0\n", "-2\n"], "output": ["0\n", "-4\n"]},
    "generated_tests": {"input": [], "output": []},
}
SANDBOX_FUSION = {
    "content": "Print twice the number that is given.\n",
    "id": 7,
    "labels": '{"name": "1_A. Twice", "source": "CODEFORCES"}',
    "test": '[{"input": {"stdin": "3\\n"}, "output": {"stdout": "6\\n"}}]',
}
# Benchmark, a row, a second row's name under the field that holds it, and the fields that must be there.
SHAPES = {
    "MultiPL-E": ("MultiPL-E", MULTIPL_E, {"name": "b"}, ("name", "language", "prompt", "tests", "stop_tokens")),
    "HumanEval": ("HumanEval", HUMANEVAL, {"task_id": "b"}, tuple(HUMANEVAL)),
    "MBPP": ("MBPP", MBPP, {"task_id": 900}, ("task_id", "text", "code", "test_setup_code", "test_list")),
    "sanitized": ("MBPP", SANITIZED, {"task_id": 900}, ("task_id", "prompt", "code", "test_list")),
    "CodeContests": ("CodeContests", CODE_CONTESTS, {"name": "b"}, tuple(CODE_CONTESTS)),
    "SandboxFusion": (
        "CodeContests",
        SANDBOX_FUSION,
        {"labels": '{"name": "b", "source": "CODECHEF"}'},
        ("labels", "test"),
    ),
}
each_shape = pytest.mark.parametrize(("benchmark", "row", "other", "fields"), SHAPES.values(), ids=SHAPES)


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@each_shape
def test_formats_hold_the_same_problems(tmp_path: Path, benchmark: str, row: dict, other: dict, fields: tuple) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [row, row | other]
    plain = write(tmp_path / "p.jsonl", [json.dumps(r) for r in rows])
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    problems = load_problems(plain, benchmark)
    assert len({p.name for p in problems}) == 2
    assert load_problems(tmp_path / "p.jsonl.gz", benchmark) == problems
    assert load_problems(str(tmp_path / "p.parquet"), benchmark) == problems
    write_problems(tmp_path / "ours.jsonl", problems)
    assert read_problems(tmp_path / "ours.jsonl") == problems


def test_what_a_row_becomes(tmp_path: Path) -> None:
    def only(benchmark: str, row: dict, **options: Any) -> Problem:
        (problem,) = load_problems(write(tmp_path / "p.jsonl", [json.dumps(row)]), benchmark, **options)
        return problem

    stops = ("\nfunction ", "\n/*")
    of_multipl_e = Problem("Made_0_twice", "js", MULTIPL_E["prompt"], MULTIPL_E["tests"], stops, benchmark="MultiPL-E")
    assert only("MultiPL-E", MULTIPL_E) == of_multipl_e
    assert only("MultiPL-E", MULTIPL_E | {"language": "javascript"}) == of_multipl_e
    of_humaneval = only("HumanEval", HUMANEVAL)
    assert (of_humaneval.name, of_humaneval.language, of_humaneval.benchmark) == ("HumanEval/900", "py", "HumanEval")
    assert of_humaneval.stop_tokens == PYTHON_STOP_TOKENS
    for problem in (of_humaneval, only("MBPP", MBPP), only("MBPP", SANITIZED)):
        exec(program(problem, problem.solution or ""), {})
        with pytest.raises((AssertionError, NameError)):
            exec(program(problem, "    return 7\n" if problem is of_humaneval else "def twice(x): return 7"), {})
    cases = (Case("3\n", "6\n"), Case("0\n", "0\n"), Case("-2\n", "-4\n"))
    of_contest = only("CodeContests", CODE_CONTESTS, language="cpp", split="train")
    assert of_contest == Problem(
        "CODEFORCES/1_A. Twice", "cpp", CODE_CONTESTS["description"], "", (), standalone=True, cases=cases
    )
    solved = CODE_CONTESTS | {"solutions": {"language": [1, 2, 4, 2], "solution": ["old", "first", "java", "second"]}}
    for language, solution in (("cpp", "first"), ("java", "java"), ("py", None), ("php", None)):
        assert only("CodeContests", solved, language=language).solution == solution
    with pytest.raises(ValueError, match=r"row 1: field 'solutions' must have one string per language"):
        only("CodeContests", solved | {"solutions": {"language": [2, 3], "solution": ["first"]}})
    assert only("CodeContests", SANDBOX_FUSION, language="cpp", split="train") == dataclasses.replace(
        of_contest, cases=cases[:1]
    )


@each_shape
def test_missing_and_ill_typed_fields_are_named(
    tmp_path: Path, benchmark: str, row: dict, other: dict, fields: tuple
) -> None:
    for name in fields:
        for value in (None, 1.5, {"x": 1}, ["\n", 3]):
            wrong = {k: v for k, v in row.items() if k != name} | ({} if value is None else {name: value})
            path = write(tmp_path / "p.jsonl", [json.dumps(row | other), "", json.dumps(wrong)])
            with pytest.raises(ValueError, match=rf"p\.jsonl, row 3\b.*'{name}'") as error:
                load_problems(path, benchmark)
            assert (f"field '{name}' is missing" in str(error.value)) == (value is None), error.value


@each_shape
def test_truncated_lines_are_named(tmp_path: Path, benchmark: str, row: dict, other: dict, fields: tuple) -> None:
    text = json.dumps(row)
    for cut in random.Random(0).sample(range(1, len(text)), 25):
        path = write(tmp_path / "p.jsonl", [json.dumps(row | other), text[:cut]])
        with pytest.raises(ValueError, match=r"p\.jsonl, row 2: not JSON .* was the file cut off"):
            load_problems(path, benchmark)


@each_shape
def test_duplicates_are_named(tmp_path: Path, benchmark: str, row: dict, other: dict, fields: tuple) -> None:
    path = write(tmp_path / "p.jsonl", [json.dumps(r) for r in (row, row | other, row)])
    with pytest.raises(ValueError, match=r"p\.jsonl, row 3: field 'name' repeats '.+'"):
        load_problems(path, benchmark)


def test_unknown_languages_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [json.dumps(MULTIPL_E | {"language": "rkt"})])
    with pytest.raises(ValueError, match=r"row 1: field 'language' is 'rkt'; it must be one of py, cpp, java"):
        load_problems(path, "MultiPL-E")
    with pytest.raises(ValueError, match="language is 'rkt'"):
        load_problems(path, "CodeContests", language="rkt")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_truncated_files_are_named(tmp_path: Path, suffix: str) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [MBPP | {"task_id": i} for i in range(1, 40)]
    whole = write(tmp_path / "whole.jsonl", [json.dumps(r) for r in rows]).read_bytes()
    path = tmp_path / f"p{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(whole))
    data = path.read_bytes()
    for cut in random.Random(0).sample(range(1, len(data)), 25):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=rf"p{suffix}.*was the file cut off"):
            load_problems(path, "MBPP")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": 7}, "field 'source' is 7; it must be from 0 to 6"),
        ({"public_tests": {"input": ["1"], "output": []}}, "'public_tests' must have as many input strings as output"),
        ({"public_tests": {"input": [1], "output": ["1"]}}, "'public_tests' must have as many input strings as output"),
        ({"public_tests": {"input": ["1"]}}, "row 1, field 'public_tests': field 'output' is missing"),
        ({f"{kind}_tests": {"input": [], "output": []} for kind in ("public", "private")}, "the row has no tests"),
    ],
)
def test_broken_contests_are_named(tmp_path: Path, change: dict, message: str) -> None:
    path = write(tmp_path / "p.jsonl", [json.dumps(CODE_CONTESTS | change)])
    with pytest.raises(ValueError, match=message):
        load_problems(path, "CodeContests")


def test_contests_on_files_are_passed_over(tmp_path: Path) -> None:
    rows = [CODE_CONTESTS, CODE_CONTESTS | {"name": "files", "input_file": "input.txt", "output_file": ""}]
    problems = load_problems(write(tmp_path / "p.jsonl", [json.dumps(r) for r in rows]), "CodeContests")
    assert [p.name for p in problems] == ["CODEFORCES/1_A. Twice"]


def test_arguments_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [""])
    with pytest.raises(ValueError, match=r"p\.jsonl: no problems found"):
        load_problems(path, "MBPP")
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
        load_problems(tmp_path / "absent.jsonl", "MBPP")
    with pytest.raises(ValueError, match="benchmark is 'APPS'; it must be one of MultiPL-E, HumanEval"):
        load_problems(path, "APPS")
    with pytest.raises(ValueError, match=r"p\.csv is neither a file that ends in \.jsonl"):
        load_problems(tmp_path / "p.csv", "MBPP")
    with pytest.raises(ValueError, match="is a file; leave out config and revision"):
        load_problems(path, "MBPP", revision="0" * 40)
    with pytest.raises(ValueError, match="nuprl/MultiPL-E needs a split"):
        load_problems("nuprl/MultiPL-E", "MultiPL-E", config="humaneval-js")
    for revision in (None, "main", "0" * 39):
        with pytest.raises(ValueError, match=r"revision of nuprl/MultiPL-E is .*; give the commit's 40"):
            load_problems("nuprl/MultiPL-E", "MultiPL-E", config="humaneval-js", split="test", revision=revision)


def test_the_hub_gives_rows_of_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return datasets.Dataset.from_list([MULTIPL_E, MULTIPL_E | {"name": "b"}, MULTIPL_E])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"^nuprl/MultiPL-E@fedcba9, humaneval-js, test, row 3: field 'name' repeats"):
        load_problems(
            "nuprl/MultiPL-E", "MultiPL-E", config="humaneval-js", split="test", revision="fedcba9876" + "0" * 30
        )
    assert asked == [
        (("nuprl/MultiPL-E", "humaneval-js"), {"split": "test", "revision": "fedcba9876000000000000000000000000000000"})
    ]


def test_an_unreachable_hub_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ConnectionError, match=r"nuprl/MultiPL-E: the hub cannot be reached .* the dataset's file"):
        load_problems("nuprl/MultiPL-E", "MultiPL-E", config="humaneval-js", split="test", revision="0" * 40)


def test_benchmarks_are_not_trained_on(tmp_path: Path) -> None:
    made = Problem("made", "py", "def f():\n", "f()", ())
    require_trainable([made])
    for benchmark, row, _, _ in SHAPES.values():
        problems = load_problems(write(tmp_path / "p.jsonl", [json.dumps(row)]), benchmark)
        message = rf"problem '{problems[0].name}' is from the benchmark {benchmark}, .* set train_on_benchmarks=True"
        write_problems(tmp_path / "copy.jsonl", problems)
        for kept in (problems, read_problems(tmp_path / "copy.jsonl")):
            with pytest.raises(ValueError, match=message):
                require_trainable([made, *kept])
            require_trainable([made, *kept], train_on_benchmarks=True)


def test_training_splits_may_be_trained_on(tmp_path: Path) -> None:
    rows = [MBPP | {"task_id": i} for i in range(1, 975)]
    problems = load_problems(write(tmp_path / "p.jsonl", [json.dumps(r) for r in rows]), "MBPP")
    assert [p.name for p in problems if p.benchmark is None] == [f"MBPP/{i}" for i in range(511, 975)]
    path = write(tmp_path / "c.jsonl", [json.dumps(CODE_CONTESTS)])
    require_trainable(load_problems(path, "CodeContests", split="train"))
    for split in ("valid", "test", None):
        with pytest.raises(ValueError, match="benchmark CodeContests"):
            require_trainable(load_problems(path, "CodeContests", split=split))


OWN = {"name": "own", "language": "js", "prompt": "function f(x) {\n", "tests": "require('assert')(f(1));"}


def test_our_own_shape_is_a_source_as_written(tmp_path: Path) -> None:
    """Problems of any kind and language beside each other, as `write_problems` and users write them."""
    problems = [
        Problem("a", "js", "function f(x) {\n", "f(1);", ("\n}",), solution="return x; }", benchmark="MultiPL-E"),
        Problem("b", "cpp", "Print twice.", "", (), standalone=True, cases=(Case("1\n", "2\n"),)),
    ]
    write_problems(tmp_path / "p.jsonl", problems)
    with open(tmp_path / "p.jsonl", "a") as file:
        file.write(json.dumps(OWN) + "\n")
    expected = (*problems, Problem("own", "js", OWN["prompt"], OWN["tests"], ()))
    assert load_problems(tmp_path / "p.jsonl") == expected
    assert SourceConfig(str(tmp_path / "p.jsonl"), languages=("py", "js")).load() == expected  # rows say theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tests": ""}, "fields 'tests' and 'cases' are empty"),
        ({"language": "rust"}, "field 'language' is 'rust'; it must be one of py, "),
        ({"prompt": None}, "field 'prompt' must be str, got None"),
        ({"stop_tokens": [""]}, "field 'stop_tokens' must be a list of non-empty strings"),
        ({"cases": "1"}, "field 'cases' must be list, got '1'"),
        ({"name": "first"}, "field 'name' repeats 'first'"),
    ],
)
def test_broken_rows_of_our_own_are_named(tmp_path: Path, change: dict, message: str) -> None:
    path = write(tmp_path / "p.jsonl", [json.dumps(OWN | {"name": "first"}), json.dumps(OWN | change)])
    with pytest.raises(ValueError, match=rf"^.*p\.jsonl, row 2: {message}[^\n]*$"):
        SourceConfig(str(path)).load()


def test_splits_of_mbpp_are_taken_from_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [json.dumps(MBPP | {"task_id": i}) for i in range(1, 975)])
    splits = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
    for split, (first, last) in splits.items():
        problems = SourceConfig(str(path), "MBPP", split=split).load()
        assert [p.name for p in problems] == [f"MBPP/{i}" for i in range(first, last + 1)]
        assert {p.benchmark for p in problems} == {None if first > 510 else "MBPP"}
    assert len(SourceConfig(str(path), "MBPP").load()) == 974
    with pytest.raises(ValueError, match=r"row 1: MBPP has no split 'dev'; use one of prompt, test, validation, train"):
        SourceConfig(str(path), "MBPP", split="dev").load()
    with pytest.raises(ValueError, match=r"q\.jsonl: no problems found"):
        SourceConfig(str(write(tmp_path / "q.jsonl", [json.dumps(MBPP)])), "MBPP", split="train").load()


def test_a_source_may_have_a_file_or_a_dataset_for_each_language(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    for language in ("cpp", "js"):
        rows = [MULTIPL_E | {"name": name, "language": language} for name in ("a", "b")]
        write(tmp_path / f"p-{language}.jsonl", [json.dumps(row) for row in rows])
    template = str(tmp_path / "p-{language}.jsonl")
    problems = SourceConfig(template, "MultiPL-E", languages=("js", "cpp")).load()
    assert [(p.name, p.language) for p in problems] == [("a", "js"), ("b", "js"), ("a", "cpp"), ("b", "cpp")]
    with pytest.raises(FileNotFoundError, match=r"p-sh\.jsonl"):
        SourceConfig(template, "MultiPL-E", languages=("js", "sh")).load()

    def load_dataset(name: str, config: str, **_: Any) -> Any:
        assert name == "nuprl/MultiPL-E"
        return datasets.Dataset.from_list([MULTIPL_E | {"language": config.removeprefix("mbpp-")}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    of_hub = SourceConfig("nuprl/MultiPL-E", "MultiPL-E", "mbpp-{language}", "test", "0" * 40, ("sh", "java"))
    assert [p.language for p in of_hub.load()] == ["sh", "java"]


def test_contests_are_posed_in_the_languages_in_turn(tmp_path: Path) -> None:
    solved = {"solutions": {"language": [2, 3], "solution": ["in C++", "in Python"]}}
    rows = [CODE_CONTESTS | solved | {"name": f"n{i}"} for i in range(7)]
    path = write(tmp_path / "p.jsonl", [json.dumps(row) for row in rows])
    languages = ("py", "cpp", "sh")
    problems = SourceConfig(str(path), "CodeContests", split="train", languages=languages).load()
    posed = {p.name: p.language for p in problems}
    assert posed == {f"CODEFORCES/n{i}": languages[i % 3] for i in range(7)}
    assert len(problems) == 7
    solutions = {"py": "in Python", "cpp": "in C++", "sh": None}
    assert all(p.solution == solutions[p.language] for p in problems)
    assert {p.language for p in SourceConfig(str(path), "CodeContests", split="train").load()} == {"py"}


def problem_of(name: str, prompt: str) -> Problem:
    return Problem(name, "py", prompt, "", ())


def test_decontamination_removes_just_what_shares_n_words() -> None:
    """Against the definition, on random texts of few words."""
    rng = random.Random(0)
    for n in (3, 4, 6):
        texts = [" ".join(rng.choices("abc", k=rng.randint(1, 12))) for _ in range(80)]
        evaluation = [problem_of(f"e{i}", text) for i, text in enumerate(texts[:8])]
        training = [problem_of(f"t{i}", text) for i, text in enumerate(texts[8:])]
        kept, removed = decontaminate(training, evaluation, n=n)
        for problem in training:
            reasons = set()
            for other in evaluation:
                words_of = other.prompt.split()
                size = min(n, len(words_of))
                for i in range(len(words_of) - size + 1):
                    ngram = " ".join(words_of[i : i + size])
                    if size >= 3 and f" {ngram} " in f" {problem.prompt} ":
                        reasons.add((other.name, ngram))
            found = [(o.evaluation_problem, o.ngram) for o in removed if o.problem == problem.name]
            assert (problem in kept) == (not reasons) == (not found)
            assert set(found) <= reasons
        assert 0 < len(kept) < len(training)
        assert len(kept) + len(removed) == len(training)


def test_decontamination_sees_through_form() -> None:
    text = "Return the largest prime factor of n. Assume n > 1 and is not a prime."
    evaluation = [Problem("HumanEval_59", "cpp", f"#include<assert.h>\n// {text}\nlong largest_prime_factor(", "", ())]
    copies = {
        "docstring": f'import math\ndef f(n):\n    """{text.upper()}"""\n',
        "wrapped": "    // Return the largest prime factor\n    //   of n.\n// assume n > 1 and is not a prime",
        "short": "// Return the largest prime factor of n, and assume that n is more than one",
        "imports": "#include<assert.h>\nlong f(",
    }
    kept, removed = decontaminate([problem_of(name, prompt) for name, prompt in copies.items()], evaluation)
    assert [p.name for p in kept] == ["short", "imports"]
    assert {o.problem for o in removed} == {"docstring", "wrapped"}
    assert {(o.evaluation_problem, o.ngram) for o in removed} == {
        ("HumanEval_59", "return the largest prime factor of n assume n 1")
    }
    assert words("hasCloseElements(has_close_elements)") == ["has", "close", "elements"] * 2
    with pytest.raises(ValueError, match="n is 2"):
        decontaminate([], [], n=2)


def test_cases_decide_together() -> None:
    cases = tuple(Case(f"{i}\n", f"{2 * i}\n") for i in range(8))
    problem = Problem("twice", "py", "Print twice the number.", "", (), standalone=True, cases=cases)
    answers = {
        "print(2 * int(input()))": "passed",
        "n = int(input())\nprint(2 * n if n != 5 else 0)": "failed",
        "n = int(input())\nprint(2 * n if n < 6 else 1 / 0)": "runtime error",
        "n = int(input())\nprint(2 * n if n < 3 else 1 / 0 if n == 3 else 0)": "runtime error",
    }
    done: list[int] = []
    candidates = [Candidate("twice", i, text, 0.0, 1, True) for i, text in enumerate(answers)]
    executed = execute(SandboxConfig(2, 5.0, 20.0), [problem], candidates, done.append)
    assert [c.verdict for c in executed] == list(answers.values())
    assert sum(done) == len(answers)


def test_what_was_judged_is_not_run_again() -> None:
    problem = Problem("one", "py", "def one():\n", "assert one() == 1\n", ())
    texts = ["    return 1", "    return 2", "    return 3 - 2"]
    candidates = [Candidate("one", i, text, 0.0, 1, True) for i, text in enumerate(texts)]
    judged = verdict_cache(
        [
            # Not what the sandbox would say: that is how one sees that it was not asked.
            Candidate("one", 9, texts[0], -1.0, 2, False, "timeout", "slept"),
            Candidate("another", 9, texts[1], -1.0, 2, False, "passed"),
            Candidate("one", 9, texts[2], -1.0, 2, False, str(Verdict.SANDBOX_ERROR)),
        ]
    )
    done: list[int] = []
    executed = execute(SandboxConfig(2, 5.0, 20.0), [problem], candidates, done.append, judged=judged)
    assert executed[0] == dataclasses.replace(candidates[0], verdict="timeout", detail="slept")
    assert [c.verdict for c in executed[1:]] == ["failed", "passed"]
    assert sum(done) == len(texts)


@needs_data
def test_all_real_rows_load() -> None:
    rows = {"py": 164, "cpp": 161, "java": 158, "php": 161, "ts": 159, "cs": 158, "sh": 158, "js": 161}
    for language in LANGUAGES:
        benchmark = "HumanEval" if language == "py" else "MultiPL-E"
        problems = load_problems(DATA / "multipl_e" / f"humaneval-{language}.jsonl", benchmark)
        assert len(problems) == rows[language]
        assert {(p.language, p.benchmark) for p in problems} == {(language, benchmark)}
    assert len(load_problems(DATA / "mbpp.jsonl", "MBPP")) == 974
    assert len(load_problems(DATA / "code_contests_sample.jsonl", "CodeContests")) == 20


@needs_data
def test_canonical_programs_are_the_evaluators() -> None:
    problems = load_problems(DATA / "multipl_e" / "humaneval-py.jsonl", "HumanEval")
    with gzip.open(DATA / "multipl_e" / "programs.jsonl.gz", "rt") as file:
        theirs = {row["program"].strip() for row in map(json.loads, file) if row["evaluator_status"] == "OK"}
    assert sum(program(p, p.solution or "").strip() in theirs for p in problems) == 164


@needs_data
@pytest.mark.parametrize("file", ["multipl_e/humaneval-cpp.jsonl", "mbpp.jsonl", "code_contests_sample.jsonl"])
def test_broken_copies_of_real_files_are_named(tmp_path: Path, file: str) -> None:
    benchmark = {"mult": "MultiPL-E", "mbpp": "MBPP", "code": "CodeContests"}[file[:4]]
    lines = (DATA / file).read_text().splitlines()
    rng = random.Random(0)

    def complaint(at: int, line: str) -> str:
        with pytest.raises(ValueError, match=rf", row {at + 1}\b") as error:
            load_problems(write(tmp_path / "p.jsonl", [*lines[:at], line, *lines[at + 1 :]]), benchmark)
        return str(error.value)

    for at in rng.sample(range(1, len(lines)), 5):
        row = json.loads(lines[at])
        assert "not JSON" in complaint(at, lines[at][: rng.randrange(1, len(lines[at]))])
        assert "repeats" in complaint(at, lines[0])
        for name in {"MultiPL-E": ("tests", "stop_tokens"), "MBPP": ("code",), "CodeContests": ("test",)}[benchmark]:
            assert f"'{name}' is missing" in complaint(at, json.dumps({k: v for k, v in row.items() if k != name}))
            assert f"'{name}' must be" in complaint(at, json.dumps(row | {name: 3}))
        if benchmark == "MultiPL-E":
            assert "'language' is 'c++'" in complaint(at, json.dumps(row | {"language": "c++"}))
