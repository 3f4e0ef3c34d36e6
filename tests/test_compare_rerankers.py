"""Rerankers beside each other: figures worked out by hand, whatever the number of samples, and the command."""

import itertools
import json

import jax
import numpy as np
import pytest

from rerankjax.cli import main
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import init_decoder
from rerankjax.model.weights import save_reranker
from rerankjax.pairs.labelled import Labelled
from rerankjax.prompts.tokenizer import train_tokenizer
from rerankjax.reranker.bradley_terry import init_reranker
from rerankjax.reranker.rerank import Reranker
from rerankjax.results import statistics
from rerankjax.results.calibration import expected_calibration_error, fit_platt, reliability
from rerankjax.results.selection import best_of
from rerankjax.standalone.comparison import ALL, write_comparison
from rerankjax.standalone.measure import Scored, compare, dev_accuracy
from rerankjax.standalone.report import report
from rerankjax.standalone.tables import markdown

T, F = True, False


def row(number, passed, executed=True, **fields):
    texts = tuple(f"{number}:{i}" for i in range(len(passed)))
    return Labelled(f"f, row {number}", f"p{number}", f"p{number}", texts, tuple(passed), executed, **fields)


# Four problems of 2, 4, 3 and 4 samples: what each reranker chooses is right in rows 1, 2, 3 and in row 3 alone.
PASSED = [(F, T), (T, F, F, F), (F, F, T), (F, F, F, F)]
GOOD = [(1.0, 2.0), (5.0, 1.0, 2.0, 3.0), (0.0, 1.0, 4.0), (0.0, 0.5, 1.0, 1.5)]
BAD = [(2.0, 1.0), (0.0, 1.0, 1.5, 2.5), (0.0, 1.0, 4.0), (0.0, 0.5, 1.0, 1.5)]


def scored(name, scores):
    return Scored(name, [np.array(s, np.float32) for s in scores], 2.0)


@pytest.fixture
def comparison():
    rows = [row(i, passed, greedy=i == 2) for i, passed in enumerate(PASSED)]
    return compare(rows, [scored("good", GOOD), scored("bad", BAD)])


def test_best_of_n_of_problems_with_different_numbers_of_samples(comparison):
    assert (comparison.problems, comparison.samples_least, comparison.samples_most) == (4, 2, 4)
    values = {(s.rule, s.reranker, s.n): s.value for s in comparison.solved}
    assert values["reranker", "good", 4] == values["oracle", "", 4] == 0.75
    assert values["reranker", "bad", 4] == 0.25
    assert values["greedy", "", 4] == 0.25
    at_random = np.mean([1 / 2, 1 / 4, 1 / 3, 0])
    assert values["random", "", 4] == pytest.approx(at_random, abs=1e-6)
    for rule, name in (("reranker", "good"), ("reranker", "bad"), ("oracle", "")):
        assert values[rule, name, 1] == pytest.approx(at_random, abs=1e-6)
    # Two of n: all of row 0; in row 1 half of the pairs hold the right one; in row 2 two of three.
    assert values["reranker", "good", 2] == pytest.approx(np.mean([1, 1 / 2, 2 / 3, 0]), abs=1e-6)
    assert values["reranker", "bad", 2] == pytest.approx(np.mean([0, 0, 2 / 3, 0]), abs=1e-6)


def test_measures_leave_out_what_is_not_there(comparison):
    pairs = [(s, t) for a, b in itertools.product(range(4), range(4)) for s, t in _pairs(a, b)]
    expected = np.mean([s > t or (s == t) / 2 for s, t in pairs])
    assert comparison.measure("good", "auc").value == pytest.approx(expected, abs=1e-6)
    assert comparison.measure("good", "pairwise_accuracy").value == 1.0
    assert comparison.measure("bad", "pairwise_accuracy").value == pytest.approx((0 + 0 + 1) / 3, abs=1e-6)
    assert 0 <= comparison.measure("good", "expected_calibration_error").value < 1
    shares = [b.share for b in comparison.reliabilities if b.reranker == "good"]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    assert [c.candidates for c in comparison.costs] == [13, 13]


def _pairs(a, b):
    right = [s for s, p in zip(GOOD[a], PASSED[a], strict=True) if p]
    wrong = [s for s, p in zip(GOOD[b], PASSED[b], strict=True) if not p]
    return itertools.product(right, wrong)


def test_arrays_with_gaps_have_the_figures_of_arrays_without():
    """Columns of nothing change nothing."""
    rng = np.random.default_rng(0)
    passed, scores = rng.random((12, 5)) < 0.4, rng.normal(size=(12, 5))
    wider = np.concatenate([passed, np.zeros((12, 2), bool)], 1), np.concatenate([scores, np.full((12, 2), np.nan)], 1)
    for measure in (statistics.auc, statistics.pairwise_accuracy):
        assert measure([passed], [scores]) == measure([wider[0]], [wider[1]])
    assert fit_platt(passed, scores) == fit_platt(*wider)
    chances = [1 / (1 + np.exp(-s)) for s in (scores, wider[1])]
    for measure in (reliability, expected_calibration_error):
        assert measure([passed], [chances[0]]) == measure([wider[0]], [chances[1]])


def test_differences_are_paired(comparison):
    found = {(d.reranker, d.baseline): d for d in comparison.differences}
    assert set(found) == {(a, b) for a in ("good", "bad") for b in ("random", "greedy")} | {("bad", "good")}
    between = found["bad", "good"]
    assert between.value == -0.5
    assert (between.alone, between.baseline_alone) == (0, 2)
    assert between.p_value == 0.5  # two of two, both ways
    assert found["good", "greedy"].value == 0.5
    # The first sample stands for a random one: it is right in row 1 alone.
    assert (found["good", "random"].alone, found["good", "random"].baseline_alone) == (2, 0)


def test_preferences_are_counted_by_subset_and_ties_shared():
    rows = [
        row(0, (T, F), executed=False, subset="code"),
        row(1, (T, F), executed=False, subset="code"),
        row(2, (T, F, F, F), executed=False, subset="math"),
        row(3, (T, T, F), executed=False),
    ]
    first = scored("a", [(1, 0), (0, 1), (2, 2, 2, 0), (0, 3, 1)])
    second = scored("b", [(1, 0), (1, 0), (1, 2, 2, 0), (0, 0, 1)])
    comparison = compare(rows, [first, second])
    assert (comparison.problems, comparison.solved, comparison.measures) == (0, (), ())
    found = {(p.reranker, p.subset): (p.value, p.rows, p.candidates) for p in comparison.preferred}
    assert found["a", "code"] == (0.5, 2, 2.0)
    assert found["a", "math"] == (pytest.approx(1 / 3, abs=1e-6), 1, 4.0)
    assert found["a", ALL] == (pytest.approx((1 + 0 + 1 / 3 + 1) / 4, abs=1e-6), 4, 2.75)
    assert found["b", ALL][0] == 0.5
    (difference,) = comparison.differences
    assert (difference.kind, difference.alone, difference.baseline_alone) == ("preferred", 1, 1)
    assert "math" in markdown(comparison)


def test_dev_accuracy_is_the_mean_over_rows_with_both_kinds():
    rows = [row(0, (T, F, F)), row(1, (T, F), executed=False), row(2, (T, T))]
    scores = [np.array([1.0, 0.0, 2.0]), np.array([1.0, 1.0]), np.array([0.0, 1.0])]
    assert dev_accuracy(rows, scores) == 0.5
    assert dev_accuracy(rows[:1], scores[:1]) == 0.5
    assert dev_accuracy(rows[1:], scores[1:]) == 0.5


def test_a_score_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match="f, row 1: bad gives a score that is not finite"):
        compare([row(0, (T,)), row(1, (F,))], [scored("bad", [(1,), (float("nan"),)])])


def test_the_page_escapes_names_and_fetches_nothing(comparison, tmp_path):
    page = report(comparison, "rerankjax evaluate --model <script>")
    assert "<script" not in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    write_comparison(tmp_path / "results.json", comparison)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rerankers"] == ["good", "bad"]
    assert len((tmp_path / "results.json").read_text().splitlines()) > 30


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["def f(x):\n    return x + 1\n"], 300)
    config = ModelConfig(300, 32, 48, 2, 4, 2, 8, 64)
    for seed in range(2):
        params = init_reranker(init_decoder(config, jax.random.key(seed)), jax.random.key(seed + 2))
        save_reranker(place / f"m{seed}", config, params, pooling="last", pad_token_id=0, tokenizer=tokenizer)
    return place / "m0", place / "m1"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_command_writes_the_figures_of_the_scores(models, tmp_path, capsys):
    samples = [
        {
            "prompt": f"def f{i}(x):\n",
            "candidates": [f"x + {j}" for j in range(3)],
            "passed": [i % 2 == j % 2 for j in range(3)],
        }
        for i in range(6)
    ]
    preferences = [{"prompt": "q", "chosen": "x", "rejected": "y", "subset": "s"}]
    data = write(tmp_path / "a.jsonl", samples), write(tmp_path / "b.jsonl", preferences)
    command = ["evaluate", "--model", str(models[0]), "--model", f"other={models[1]}"]
    command += ["--data", data[0], "--data", data[1], "--output-dir", str(tmp_path / "out" / "deep")]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "Problems solved" in out
    assert "Preferences" in out
    assert "score with other: 20/20 candidates" in err
    results = json.loads((tmp_path / "out/deep/results.json").read_text())
    assert results["rerankers"] == [str(models[0]), "other"]
    scores = Reranker.from_pretrained(models[1]).score_all([(s["prompt"], s["candidates"]) for s in samples])
    expected = best_of(np.array([s["passed"] for s in samples]), np.array(scores)).mean()
    (best,) = (s for s in results["solved"] if (s["reranker"], s["n"]) == ("other", 3))
    assert best["value"] == pytest.approx(expected, abs=1e-6)
    assert (tmp_path / "out/deep/report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "./nowhere"], "./nowhere is not a folder"),
        (["--model", "a={m}", "--model", "a={m}"], "the name 'a' is already used"),
        (["--model", "{m}", "--chat"], "the tokenizer has no chat template"),
        (["--model", "{m}", "--data", "{bad}"], "bad.jsonl, row 1: field 'passed' must contain only true and false"),
        (["--model", "{m}", "--data", "{long}"], "long.jsonl, row 1: field 'prompt': the prompt has 100 tokens"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(models, tmp_path, capsys, arguments, said):
    files = {
        "bad": {"prompt": "q", "candidates": ["x"], "passed": [float("nan")]},
        "long": {"prompt": "1" * 100, "candidates": ["x", "y"], "passed": [True, False]},
        "good": {"prompt": "q", "candidates": ["x", "y"], "passed": [True, False]},
    }
    paths = {name: write(tmp_path / f"{name}.jsonl", [content]) for name, content in files.items()}
    given = [argument.format(m=models[0], **paths) for argument in arguments]
    given += ["--data", paths["good"]] * ("--data" not in given)
    assert main(["evaluate", *given, "--output-dir", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("rerankjax evaluate: ")
    assert said in last
    assert not (tmp_path / "out").exists()
