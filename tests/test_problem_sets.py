"""A seed's problems: what is tested on is not trained on, whatever it comes from; and every split is written once."""

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rerankjax.loop.config import ConfigError, ExperimentConfig
from rerankjax.loop.problem_sets import Problems, open_problems
from rerankjax.loop.resolve import resolve
from rerankjax.problems.decontamination import decontaminate
from rerankjax.problems.jsonl import read_rows
from rerankjax.problems.problem import Case, Problem, write_problems
from rerankjax.run.rundir import RunDirectoryError, read_manifest

CONFIGS = Path(__file__).parents[1] / "configs"
WORDS = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st", "uv", "wx", "yz"]


def problem(name: str, language: str = "py", prompt: str = "", **fields: Any) -> Problem:
    """One that shares no three words with another."""
    number = int("".join(c for c in name if c.isdigit()) or 0)
    words = " ".join(f"{word}{number}" for word in WORDS)
    return Problem(name, language, prompt or f"# {words}\n", "check()", (), **fields)


def own(tmp_path: Path, name: str, problems: Sequence[Problem]) -> str:
    write_problems(tmp_path / name, problems)
    return str(tmp_path / name)


def config_of(**sections: Any) -> ExperimentConfig:
    """configs/mini.py:smoke with fields of its problems, evaluation or prompts set."""
    tree = json.loads(runpy.run_path(str(CONFIGS / "mini.py"))["get_config"]("smoke").to_json())
    for name, fields in sections.items():
        tree[name] |= fields
    return resolve(tree, 1)


def names(problems: Sequence[Problem]) -> list[str]:
    return [p.name for p in problems]


def removed(tmp_path: Path, seed: int = 0) -> list[str]:
    return [row["problem"] for _, row in read_rows(tmp_path / f"run/seed{seed}/problems/removed.jsonl")]


def opened(tmp_path: Path, seed: int = 0, **sections: Any) -> Problems:
    found = open_problems(config_of(**sections), seed, tmp_path / "run")
    again = open_problems(config_of(**sections), seed, tmp_path / "run")
    assert again == found  # read, not made
    for split in found.splits.values():
        assert len(set(names(split))) == len(split)
    return found


def test_synthetic_problems_do_not_remove_each_other(tmp_path: Path) -> None:
    found = opened(tmp_path, problems={"decontamination_ngram": 3})
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 8, "dev": 4, "test": 4}
    assert removed(tmp_path) == []
    assert len(found.corpus) == 64
    # Though they share that many words.
    kept, _ = decontaminate(found.splits["train"], found.splits["test"], n=3)
    assert len(kept) < 8


def test_given_problems_remove_training_problems_of_every_kind_and_their_solutions(tmp_path: Path) -> None:
    synthetic = opened(tmp_path / "before").splits
    copies = [
        problem(f"copy{i}", prompt=source.prompt.upper())
        for i, source in enumerate((synthetic["train"][2], synthetic["dev"][1]))
    ]
    given = [problem(f"p{i}") for i in range(6)]
    sections = {
        "problems": {"train": ["synthetic", own(tmp_path, "train.jsonl", given)], "decontamination_ngram": 6},
        # A synthetic evaluation problem removes none of its family; a given one any; translations are renamed.
        "evaluation": {
            "test": {"sources": ["synthetic"], "samples": 4},
            "own": {
                "sources": ["synthetic", own(tmp_path, "own.jsonl", [*copies, problem("q3"), problem("q3x", "js")])],
                "samples": 4,
            },
        },
    }
    found = opened(tmp_path, **sections)
    gone = {synthetic["train"][2].name, synthetic["dev"][1].name, "p3"}
    assert set(removed(tmp_path)) == gone
    assert set(names(found.splits["train"])) == {*names(synthetic["train"]), *names(given)} - gone
    assert set(names(found.splits["dev"])) == set(names(synthetic["dev"])) - gone
    assert {s.problem for s in found.corpus} == set(names(synthetic["train"])) - gone
    assert names(found.splits["test"]) == names(synthetic["test"])
    none = opened(tmp_path / "none", **(sections | {"problems": sections["problems"] | {"decontamination_ngram": 0}}))
    assert len(none.splits["train"]) == 14


def test_translations_of_synthetic_names_beside_the_family_change_nothing_of_it(tmp_path: Path) -> None:
    """Names that two languages share get their language; the others, and who removes whom, stay."""
    both = [own(tmp_path, f"t-{g}.jsonl", [problem("t1", g), problem(f"{g}only2", g)]) for g in ("py", "cpp")]
    evaluation = {"test": {"sources": ["synthetic", *both], "samples": 4}}
    found = opened(tmp_path, problems={"decontamination_ngram": 3}, evaluation=evaluation)
    assert names(found.splits["test"])[4:] == ["t1-py", "pyonly2", "t1-cpp", "cpponly2"]
    assert removed(tmp_path) == []
    assert len(found.splits["train"]) == 8


def test_training_files_by_language_share_names(tmp_path: Path) -> None:
    for language in ("py", "js"):
        own(tmp_path, f"p-{language}.jsonl", [problem(f"a{i}", language) for i in range(3)])
    source = {"source": str(tmp_path / "p-{language}.jsonl"), "languages": ["py", "js"]}
    found = opened(tmp_path, problems={"train": [source], "decontamination_ngram": 0})
    assert sorted(names(found.splits["train"])) == sorted(f"a{i}-{g}" for i in range(3) for g in ("py", "js"))
    twice = [str(tmp_path / "p-py.jsonl")]
    with pytest.raises(ConfigError, match=r"config.problems.train, config.problems.dev: .* repeats 'a0'"):
        open_problems(config_of(problems={"train": twice, "dev": twice}), 0, tmp_path / "twice")


def test_problems_are_set_aside_for_evaluation_and_dev(tmp_path: Path) -> None:
    given = [problem(f"p{i}", solution="x") for i in range(20)]
    problems = {"train": [own(tmp_path, "p.jsonl", given)], "dev": [], "dev_problems": 3, "test_problems": 5}
    held_out = {"test": {"sources": ["held_out"], "samples": 4}}
    found = opened(tmp_path, problems=problems | {"max_train": 7}, evaluation=held_out)
    sizes = {name: len(split) for name, split in found.splits.items()}
    assert sizes == {"test": 5, "dev": 3, "train": 7}
    assert {p for split in found.splits.values() for p in split} <= set(given)
    assert found.corpus == ()  # the family is no source
    # In another order for another seed, for the same seed the same.
    other = opened(tmp_path, 1, problems=problems, evaluation=held_out)
    assert {name: len(split) for name, split in other.splits.items()} == {"test": 5, "dev": 3, "train": 12}
    assert other.splits["test"] != found.splits["test"]
    same = opened(tmp_path / "again", problems=problems, evaluation=held_out)
    assert (same.splits["test"], same.splits["dev"]) == (found.splits["test"], found.splits["dev"])
    # Nobody evaluates on them: nothing is set aside for that.
    without = opened(tmp_path / "without", problems=problems)
    assert len(without.splits["train"]) == 17


def test_a_training_problem_like_one_held_out_is_removed(tmp_path: Path) -> None:
    """As a translation of it is."""
    given = [problem(f"{language}{i}", language) for i in range(10) for language in ("py", "js")]
    problems = {"train": [own(tmp_path, "p.jsonl", given)], "dev": [], "dev_problems": 2, "test_problems": 4}
    found = opened(tmp_path, problems=problems, evaluation={"test": {"sources": ["held_out"], "samples": 4}})
    tested = {p.name.removeprefix("py").removeprefix("js") for p in found.splits["test"]}
    rest = [p.name for name in ("train", "dev") for p in found.splits[name]]
    assert not {name.removeprefix("py").removeprefix("js") for name in rest} & tested
    assert len(rest) == 20 - 2 * len(tested)


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("benchmark", ["MultiPL-E", ""])
def test_no_benchmark_is_trained_on(tmp_path: Path, split: str, benchmark: str) -> None:
    """Loaded as one, or written down by us or a user as one."""
    one = problem("HumanEval_7_x", "cpp", benchmark="MultiPL-E")
    source = {"source": own(tmp_path, "p.jsonl", [problem("a0"), one]), "benchmark": benchmark}
    problems = {split: ["synthetic", source]}
    name = "HumanEval_7_x" if benchmark == "" else "a0"  # the whole file is one
    with pytest.raises(
        ConfigError, match=rf"config.problems.train, .*: problem '{name}' is from the benchmark MultiPL-E"
    ):
        open_problems(config_of(problems=problems), 0, tmp_path / "run")
    assert not list((tmp_path / "run").glob("**/stage.json"))
    found = opened(tmp_path, problems=problems | {"train_on_benchmarks": True, "decontamination_ngram": 0})
    assert {"a0", "HumanEval_7_x"} <= set(names(found.splits[split]))


def test_sources_that_cannot_be_read_are_named_by_field_file_and_row(tmp_path: Path) -> None:
    broken = tmp_path / "p.jsonl"
    broken.write_text('{"name": "a", "language": "py", "prompt": "p", "tests": ""}\n')
    evaluation = {"test": {"sources": [str(broken)], "samples": 4}}
    for field, sections in {
        "problems.train": {"problems": {"train": [str(broken)]}},
        "problems.dev": {"problems": {"dev": [str(broken)]}},
        "evaluation.test.sources": {"evaluation": evaluation},
        "prompts.shots, for train": {"prompts": {"shots": [str(broken)]}},
    }.items():
        with pytest.raises(ConfigError) as error:
            open_problems(config_of(**sections), 0, tmp_path / "run")
        assert str(error.value) == (
            f"config.{field}: {broken}, row 1: fields 'tests' and 'cases' are empty; give exactly one of them."
        )
    for source in ("missing.jsonl", "{brace}.jsonl", "no-such-thing"):
        with pytest.raises(ConfigError, match=rf"^config.problems.train: .*{source}[^\n]*$"):
            open_problems(config_of(problems={"train": [source]}), 0, tmp_path / "run")
    twice = {"test": {"sources": [own(tmp_path, "q.jsonl", [problem("a0")])] * 2, "samples": 4}}
    with pytest.raises(ConfigError, match=r"config.evaluation.test.sources: field 'name' repeats 'a0'"):
        open_problems(config_of(evaluation=twice), 0, tmp_path / "run")


def test_shots_are_a_splits_own_and_of_the_names_asked_for(tmp_path: Path) -> None:
    solved = [problem(f"s{i}", solution="x", standalone=True) for i in range(4)]
    shots = {"style": "completion", "shots": [own(tmp_path, "s.jsonl", solved)]}
    evaluation = {"test": {"sources": ["synthetic"], "samples": 4, "prompts": shots | {"shot_names": ["s3", "s1"]}}}
    found = opened(tmp_path, prompts=shots, evaluation=evaluation)
    assert {name: names(of) for name, of in found.shots.items()} == {
        "train": ["s0", "s1", "s2", "s3"],
        "dev": ["s0", "s1", "s2", "s3"],
        "test": ["s1", "s3"],
    }
    with pytest.raises(ConfigError, match=r"config.prompts.shot_names: s7 not found in prompts.shots"):
        open_problems(config_of(prompts=shots | {"shot_names": ["s1", "s7"]}), 0, tmp_path / "other")


def test_evaluation_sets_are_cut_by_language_and_tests_by_cases(tmp_path: Path) -> None:
    cases = tuple(Case(str(i), str(i)) for i in range(5))
    long = [Problem(f"c{i}", "py", f"Read {problem(f'c{i}').prompt}", "", (), True, cases) for i in range(3)]
    mixed = [problem(f"{language}{i}", language) for i in range(4) for language in ("py", "js")]
    sources = [own(tmp_path, "m.jsonl", mixed), own(tmp_path, "c.jsonl", long)]
    evaluation = {"test": {"sources": sources, "samples": 4, "max_problems": 2}}
    train = own(tmp_path, "t.jsonl", [Problem(f"t{p.name}", *list(vars(p).values())[1:]) for p in long])
    found = opened(
        tmp_path, problems={"train": [train], "max_test_cases": 2, "decontamination_ngram": 0}, evaluation=evaluation
    )
    assert names(found.splits["test"]) == ["py0", "py1", "js0", "js1", "c0", "c1"]
    assert {len(p.cases) for p in found.splits["train"]} == {2}
    assert {len(p.cases) for p in found.splits["test"][4:]} == {5}  # what is evaluated keeps all


@pytest.mark.parametrize("lists", ["repaired", "as-shipped"])
def test_csharp_lists_are_repaired_in_benchmarks_alone(tmp_path: Path, lists: str) -> None:
    tests = "Debug.Assert(F().Equals((new List<long>())));"
    given = [
        Problem(f"c{i}", "cs", problem(f"c{i}").prompt, tests, (), benchmark=b) for i, b in enumerate(("MBPP", None))
    ]
    evaluation = {"test": {"sources": [own(tmp_path, "c.jsonl", given)], "samples": 4, "csharp_lists": lists}}
    of_benchmark, of_user = opened(tmp_path, evaluation=evaluation).splits["test"]
    assert ("SequenceEqual" in of_benchmark.tests) is (lists == "repaired")
    assert of_user.tests == tests


def test_a_changed_file_of_problems_is_refused_and_what_is_not_read_may_change(tmp_path: Path) -> None:
    sections = {"problems": {"train": [own(tmp_path, "p.jsonl", [problem(f"a{i}") for i in range(12)])]}}
    found = opened(tmp_path, **sections)
    manifest = read_manifest(tmp_path / "run/seed0/problems")
    assert {"problems.train", "prompts.style", "evaluation.test.sources"} <= manifest["reads"].keys()
    assert not [field for field in manifest["reads"] if field.startswith(("ppo.", "sft.", "generator."))]
    assert opened(tmp_path, **sections, ppo={"kl_coef": 0.9}) == found
    write_problems(tmp_path / "p.jsonl", [problem(f"a{i}") for i in range(11)])
    with pytest.raises(RunDirectoryError, match=rf'  content of {tmp_path}/p.jsonl: "\w+" -> "\w+"\nGive another'):
        open_problems(config_of(**sections), 0, tmp_path / "run")
