"""Data for rerankers: every shape to one, problems split whole, and broken rows named in one line."""

import gzip
import json
from pathlib import Path

import pytest

from rerankjax.pairs.data import DataSource, Splits, check_disjoint, make_pairs, read_data, split_by_problem
from rerankjax.pairs.labelled import MAX_CHARACTERS, Labelled, Message

USER, RIGHT, WRONG = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "r"), ("assistant", "w"))
)
ASKED = (Message("user", "q"),)
SHAPES = {
    "plain": ({"prompt": "q", "chosen": "r", "rejected": "w", "subset": "s"}, "q"),
    "AceCode": ({"instruction": "q", "input": "", "chosen": "r", "rejected": "w", "id": 7}, "q"),
    "with input": ({"instruction": "q", "input": "x", "chosen": "r", "rejected": "w"}, "q\nx"),
    "conversation": ({"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]}, ASKED),
    "prompt inside": ({"chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, ASKED),
    "prompt twice": ({"prompt": "q", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, ASKED),
    "prompt a text": ({"prompt": "q", "chosen": [RIGHT], "rejected": [WRONG]}, ASKED),
    "null fields": ({"prompt": "q", "chosen": "r", "rejected": "w", "candidates": None, "passed": None}, "q"),
    "samples": ({"prompt": "q", "candidates": ["r", "w"], "passed": [True, False], "name": "n"}, "q"),
}


def write(path: Path, rows) -> DataSource:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return DataSource(str(path))


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_has_a_right_and_a_wrong_answer(tmp_path, kind):
    row, prompt = SHAPES[kind]
    (found,) = read_data([write(tmp_path / "rows.jsonl", [row])])
    assert (found.prompt, found.candidates, found.passed) == (prompt, ("r", "w"), (True, False))
    assert found.executed == (kind == "samples")
    assert found.subset == row.get("subset", "")


def test_best_of_four_has_three_wrong_answers(tmp_path):
    row = {"prompt": "q", "chosen": ["r"], "rejected": ["a", "b", "c"], "subset": "Math", "id": "4"}
    (found,) = read_data([write(tmp_path / "rows.jsonl", [row])])
    assert found.candidates == ("r", "a", "b", "c")
    assert found.passed == (True, False, False, False)
    assert found.name == "4"


def test_multipl_e_s_results_hold_the_completions(tmp_path):
    base = {"name": "p", "prompt": "def f():\n", "tests": "assert f()"}
    results = [("    return 1\n", "OK"), ("    return 0\n", "Exception"), ("", "Timeout")]
    row = base | {"results": [{"program": f"def f():\n{c}\nassert f()", "status": s} for c, s in results]}
    (tmp_path / "results" / "py").mkdir(parents=True)
    write(tmp_path / "results" / "py" / "p.results.json.gz", [row])
    (tmp_path / "results" / "py" / "p.json").write_text("{}")  # completions beside them say nothing more
    for source in (tmp_path / "results", tmp_path / "results" / "py" / "p.results.json.gz"):
        (found,) = read_data([DataSource(str(source))])
        assert found.candidates == ("    return 1\n", "    return 0\n", "")
        assert found.passed == (True, False, False)
        assert found.executed


def test_files_of_every_kind_are_mixed(tmp_path, monkeypatch):
    import datasets

    rows = [row for row, _ in SHAPES.values()]
    flat = [dict.fromkeys(rows[0] | rows[-1]) | row for row in (rows[0], rows[-1])]  # a column is in every row
    datasets.Dataset.from_list(flat).to_parquet(tmp_path / "c.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_list(flat))
    sources = [write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl.gz", rows)]
    sources += [DataSource(str(tmp_path / "c.parquet")), DataSource("owner/name", split="test")]
    found = read_data(sources)
    assert len(found) == 2 * len(rows) + 4
    assert {row.candidates for row in found} == {("r", "w")}
    assert found[-1].where == "owner/name, test, row 2"


def labelled(prompt, passed=(True, False), executed=True, where="f, row 1"):
    texts = tuple(f"{prompt}{i}" for i in range(len(passed)))
    return Labelled(where, prompt, prompt, texts, tuple(passed), executed)


def test_problems_are_split_whole_and_in_any_order():
    rows = [labelled(f"p{i % 50}", executed=i < 50) for i in range(100)]
    splits = split_by_problem(rows, 0.1, 0.2, 0)
    prompts = [{row.prompt for row in part} for part in splits]
    assert [len(p) for p in prompts] == [35, 5, 10]
    assert [len(part) for part in splits] == [70, 10, 20]
    check_disjoint(splits)
    again = split_by_problem(rows[::-1], 0.1, 0.2, 0)
    assert [{row.prompt for row in part} for part in again] == prompts
    other = split_by_problem(rows, 0.1, 0.2, 1)
    assert {row.prompt for row in other.test} != prompts[2]
    with pytest.raises(ValueError, match="of 2 different prompts, 1 would be for dev and 1 for test"):
        split_by_problem(rows[:2], 0.1, 0.1, 0)


def test_a_problem_in_two_splits_is_named():
    splits = Splits([labelled("a")], [labelled("b")], [labelled("c"), labelled("a", where="g, row 2")])
    with pytest.raises(ValueError, match=r"^g, row 2: field 'prompt' is in the test data and, at f, row 1, in the tr"):
        check_disjoint(splits)


def test_pairs_are_of_one_problem_and_of_one_preference():
    first = labelled("a", (True, False, True))
    flaky = labelled("a", (True, True, True))  # a1 fails above and passes here
    more = Labelled("f", "a", "a", ("x", "y"), (True, False), True)
    assert {(p.chosen, p.rejected) for p in make_pairs([first, flaky, more], 99, 0)} == {
        ("a0", "y"),
        ("a2", "y"),
        ("x", "y"),
    }
    preferences = [Labelled("f", "a", "a", pair, (True, False), False) for pair in (("p", "q"), ("r", "s"))]
    assert [(p.chosen, p.rejected) for p in make_pairs(preferences, 99, 0)] == [("p", "q"), ("r", "s")]


def test_pairs_beyond_the_limit_are_drawn_by_problem():
    many = labelled("a", [True] * 10 + [False] * 10)
    alone, beside = make_pairs([many], 8, 0), make_pairs([labelled("b"), many], 8, 0)[1:]
    assert len(set(alone)) == 8
    assert alone == beside
    assert alone != make_pairs([many], 8, 1)


def test_problems_without_a_contrast_are_said():
    rows = [labelled("a", (True, True)), labelled("b", (False,))]
    with pytest.raises(ValueError, match="none of 2 problems has both a passing and a failing candidate"):
        make_pairs(rows, 8, 0)


SAMPLES = {"prompt": "q", "candidates": ["r", "w"], "passed": [True, False]}
PLAIN = {"prompt": "q", "chosen": "r", "rejected": "w"}
BROKEN = {
    "missing field": (PLAIN, {"rejected": ...}, "field 'rejected' is missing; the row has ['chosen', 'prompt']"),
    "no prompt": (SAMPLES, {"prompt": ...}, "field 'prompt' is missing"),
    "no verdicts": (SAMPLES, {"passed": ...}, "field 'passed' is missing; run the candidates with `rerankjax execute`"),
    "empty prompt": (PLAIN, {"prompt": ""}, "field 'prompt' is empty"),
    "empty candidates": (SAMPLES, {"candidates": [], "passed": []}, "field 'candidates' is empty"),
    "too few verdicts": (SAMPLES, {"passed": [True]}, "field 'passed' has 1 entries for 2 candidates"),
    "NaN": (
        SAMPLES,
        {"passed": [True, float("nan")]},
        "field 'passed' must contain only true and false; number 2 is nan",
    ),
    "wrong type": (SAMPLES, {"candidates": ["r", 3]}, "field 'candidates', number 2, must be a string, got 3"),
    "wrong type of all": (SAMPLES, {"candidates": "x" * 10**7}, "field 'candidates' must be list, got 'xxx"),
    "10 MB": (PLAIN, {"chosen": "x" * 10**7}, f"has 10000000 characters, more than {MAX_CHARACTERS}"),
    "half a character": (PLAIN, {"chosen": "\ud800"}, "field 'chosen' is not valid Unicode"),
    "equal answers": (PLAIN, {"rejected": "r"}, "fields 'chosen' and 'rejected' have the same text"),
    "two kinds": (PLAIN, {"passed": [True]}, "fields ['chosen', 'passed', 'rejected'] belong to several kinds of row"),
    "no kind": ({"text": "q"}, {}, "fields ['text'] match no known kind of row"),
    "other prompts": (
        PLAIN,
        {"chosen": [USER, RIGHT], "rejected": [USER | {"content": "p"}, WRONG]},
        "fields 'chosen' and 'rejected' differ before their last messages",
    ),
    "no answer": (
        PLAIN,
        {"chosen": [USER, RIGHT], "rejected": [USER]},
        "field 'rejected' ends with a message of 'user'",
    ),
    "a message without content": (
        PLAIN,
        {"chosen": [USER, {"role": "assistant"}]},
        "'chosen', number 2, must be a string, got None",
    ),
    "results of others": (
        {"prompt": "q", "tests": "t", "results": [{"program": "p", "status": "OK"}]},
        {},
        "field 'results', number 1: field 'program' must begin with the row's prompt",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_rows_are_one_line_with_file_row_and_field(tmp_path, kind):
    row, change, said = BROKEN[kind]
    row = {name: value for name, value in (row | change).items() if value is not ...}
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 2: ") as error:
        read_data([write(tmp_path / "rows.jsonl", [PLAIN, row])])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.gz", b'{"prompt": 1}\n', "a.jsonl.gz: cannot be read (Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(json.dumps(PLAIN).encode() * 99, mtime=0)[:40], "cannot be read"),
        ("a.jsonl", json.dumps(PLAIN).encode()[:-9], "a.jsonl, row 1: not JSON"),
        ("a.jsonl", b'{"prompt": "\xff"}', "cannot be read ('utf-8' codec can't decode"),
        ("a.jsonl", b"\n", "no rows found"),
        ("a.parquet", b"PAR1", "a.parquet: not Parquet"),
        ("a.csv", b"", "a.csv: is neither a file that ends in .jsonl"),
    ],
)
def test_broken_files_are_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.") as error:
        read_data([DataSource(str(tmp_path / name))])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no file ends in"):
        read_data([DataSource(str(tmp_path))])
