"""Results: selection rules, intervals, figures, claims and pages against numbers worked out by hand."""

import dataclasses
import io
import itertools
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from rerankjax.results import calibration, claims, markup, plots, render, report, results, selection, statistics
from rerankjax.results.comparison import comparison
from rerankjax.results.evaluation import Evaluation
from rerankjax.results.summary import summarise


LABELS = {
    "base": "Base model",
    "sft": "SFT, reranker 1",
    "ppo": "PPO, reranker 1",
    "same_data": "PPO, reranker 2 (same data)",
    "random": "PPO, reranker 2 (random negatives)",
    "hard": "PPO, reranker 2 (hard negatives)",
    "self_training": "PPO, reranker 2 (self-training)",
    "hard+ppo": "PPO 2, reranker 2 (hard negatives)",
    "self_training+ppo": "PPO 2, reranker 2 (self-training)",
}


def evaluation(
    seed: int = 0,
    system: str = "sft",
    problems: int = 40,
    n: int = 8,
    gain: float = 1.0,
    languages: tuple[str, ...] = ("py",),
    evaluation_set: str = "test",
) -> Evaluation:
    """Made-up samples: the policy decides what was sampled, `gain` how well the reranker discriminates."""
    policy = f"ppo2/{system[:-4]}" if system.endswith("+ppo") else system if system in ("base", "sft", "ppo") else "ppo"
    rng = np.random.default_rng([seed, *policy.encode()])
    ability = rng.normal(size=(problems, 1)) + (policy not in ("base", "sft")) - 0.5
    program = rng.integers(6, size=(problems, n))
    passed = ((program * 7 + np.arange(problems)[:, None]) % 6 / 6) < 1 / (1 + np.exp(-ability))
    log_probabilities = -rng.random((problems, n)) + 0.2 * passed
    scores = np.random.default_rng([seed, *system.encode()]).normal(size=(problems, n)) + gain * passed
    reranked = system != "base"
    return Evaluation(
        seed=seed,
        evaluation_set=evaluation_set,
        system=system,
        label=LABELS[system],
        policy=policy,
        policy_label=LABELS[system].split(",")[0],
        reranker=system if reranked else "",
        problems=tuple(f"p{seed}_{i}" for i in range(problems)),
        programs=tuple(tuple(f"return {v}" for v in row) for row in program),
        passed=passed,
        scores=scores if reranked else None,
        log_probabilities=log_probabilities,
        lengths=rng.integers(5, 20, size=(problems, n)),
        log_prob_weight=0.5,
        platt=calibration.fit_platt(passed, scores) if reranked else None,
        languages=tuple(languages[i % len(languages)] for i in range(problems)),
        sampling_seconds=problems * 0.5,
        scoring_seconds=problems * 0.25,
        greedy=rng.random(problems) < 1 / (1 + np.exp(-ability[:, 0])),
    )


def every_subset(passed: list[bool], scores: list[float], m: int) -> float:
    """Best of m the slow way: all subsets, ties shared."""
    picks = []
    for subset in itertools.combinations(range(len(scores)), m):
        best = max(scores[i] for i in subset)
        picks.append(np.mean([passed[i] for i in subset if scores[i] == best]))
    return float(np.mean(picks))


# Selection


def test_best_of_shares_ties_by_hand() -> None:
    passed = np.array([[True, False, False, True], [True, True, False, False]])
    scores = np.array([[2.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    # Row 0: two tie for the top, one of which passes. Row 1: the top fails.
    np.testing.assert_allclose(selection.best_of(passed, scores), [0.5, 0.0])
    # m = 2, row 1: of the six pairs only {0, 1} has a passing best.
    np.testing.assert_allclose(selection.best_of(passed, scores, 2)[1], 1 / 6)


@pytest.mark.parametrize("m", [1, 2, 3, 5, 7])
def test_best_of_equals_enumeration(m: int) -> None:
    rng = np.random.default_rng(m)
    passed = rng.random((20, 7)) < 0.4
    scores = rng.integers(4, size=(20, 7)).astype(float)
    slow = [every_subset(list(p), list(s), m) for p, s in zip(passed, scores, strict=True)]
    np.testing.assert_allclose(selection.best_of(passed, scores, m), slow, atol=1e-12)


def test_choice_probabilities_sum_to_one_and_ignore_scale() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 9))
    for m in selection.sample_counts(9):
        chosen = selection.choice_probabilities(scores, m)
        np.testing.assert_allclose(chosen.sum(1), 1)
        np.testing.assert_allclose(chosen, selection.choice_probabilities(3 * scores + 7, m))


def test_pass_at_k_is_the_unbiased_estimator() -> None:
    passed = np.arange(10) < np.array([[0], [3], [10]])
    for k in (1, 4, 8, 10):
        expected = [1 - math.comb(10 - c, k) / math.comb(10, k) for c in (0, 3, 10)]
        np.testing.assert_allclose(selection.pass_at_k(passed, k), expected)


def test_majority_counts_copies_and_shares_ties() -> None:
    passed = np.array([[True, False, False, False], [True, True, False, False], [True, False, True, False]])
    programs = [["a", "b", "b", "c"], ["a", "a", "b", "b"], ["a", "b", "a", "c"]]
    np.testing.assert_allclose(selection.majority(passed, programs), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(selection.majority(passed, programs, 1), passed.mean(1))
    # Of a random two, different programs tie and equal ones agree: a random sample again, up to the drawing.
    np.testing.assert_allclose(selection.majority(passed, programs, 2), passed.mean(1), atol=0.12)
    again = selection.majority(passed, programs, 3)
    np.testing.assert_array_equal(again, selection.majority(passed, programs, 3))


def test_every_rule_lies_between_nothing_and_the_oracle() -> None:
    e = evaluation()
    sampled = [rule for rule in selection.RULES if rule != "greedy"]  # the greedy answer is no sample
    for m in selection.sample_counts(8):
        np.testing.assert_array_equal(selection.solved(e, "greedy", m), e.greedy)
        oracle = selection.solved(e, "oracle", m)
        for rule in sampled:
            outcome = selection.solved(e, rule, m)
            assert (outcome >= -1e-12).all()
            # A Monte-Carlo majority may exceed an expectation by its noise.
            assert (outcome <= oracle + (0.15 if rule == "majority" else 1e-12)).all(), rule
    for rule in sampled:
        np.testing.assert_allclose(selection.solved(e, rule, 1), e.passed.mean(1))


def test_choose_lambda_by_hand_and_prefers_less_of_it() -> None:
    passed = np.array([[True, False], [False, True]])
    scores = np.array([[0.0, 1.0], [0.0, 1.0]])
    log_probabilities = np.array([[-1.0, -3.0], [-2.0, -2.0]])
    # Row 0 turns at lambda = 1/2; row 1 never does. 1 and 2 solve both, so 1.
    assert selection.choose_lambda(passed, scores, log_probabilities, [2.0, 0.0, 1.0, -1.0]) == 1.0
    assert selection.choose_lambda(passed, scores, np.zeros((2, 2)), [2.0, -1.0, 0.0]) == 0.0


def test_an_answer_is_one_sample_by_hand() -> None:
    e = dataclasses.replace(
        evaluation(problems=2, n=4),
        programs=(("a", "b", "b", "c"), ("a", "b", "c", "d")),
        passed=np.array([[True, False, False, True], [False, True, True, False]]),
        scores=np.array([[1.0, 2.0, 0.0, 2.0], [0.0, 0.0, 3.0, 0.0]]),
        log_probabilities=np.array([[-1.0, -9.0, -9.0, -2.0], [-1.0, -2.0, -3.0, -4.0]]),
        greedy=np.array([False, True]),
        log_prob_weight=1.0,
    )
    expected = {
        "greedy": [False, True],
        "random": [True, False],  # the first
        "log_probability": [True, False],
        "majority": [False, False],  # b; the first of four that are all different
        "reranker": [False, True],  # the earlier of two that tie
        "reranker+log_probability": [True, True],  # 0, -7, -9, 0 and -1, -2, 0, -4
        "oracle": [True, True],
    }
    assert {rule: selection.answers(e, rule).tolist() for rule in selection.RULES} == expected
    with pytest.raises(ValueError, match="choose one of greedy"):
        selection.answers(e, "best")


def test_answers_agree_with_expectations_where_nothing_ties() -> None:
    e = evaluation()
    for rule in ("greedy", "log_probability", "reranker", "reranker+log_probability", "oracle"):
        np.testing.assert_array_equal(selection.answers(e, rule), selection.solved(e, rule))


def test_bad_samples_are_refused_with_their_place() -> None:
    e = evaluation()
    scores = e.scores.copy()
    scores[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"scores\[3, 2\] is nan"):
        dataclasses.replace(e, scores=scores)
    with pytest.raises(ValueError, match="NaN"):
        selection.best_of(e.passed, scores)
    with pytest.raises(ValueError, match="bool"):
        dataclasses.replace(e, passed=e.passed.astype(float))
    with pytest.raises(ValueError, match=r"greedy is bool \(39,\); give bool \[40\]"):
        dataclasses.replace(e, greedy=e.greedy[1:])
    with pytest.raises(ValueError, match="label is empty; name it"):
        dataclasses.replace(e, label="")
    with pytest.raises(ValueError, match="reranker is '' and scores ndarray; give scores exactly where there is a rer"):
        dataclasses.replace(e, reranker="")
    with pytest.raises(ValueError, match="reranker is 'sft' and platt NoneType"):
        dataclasses.replace(e, platt=None)
    with pytest.raises(ValueError, match="problems are 40 names; give 40, different within a language"):
        dataclasses.replace(e, problems=("p",) * 40)
    with pytest.raises(ValueError, match="caught is -1"):
        dataclasses.replace(e, caught=-1)
    with pytest.raises(ValueError, match="system 'base' has no reranker"):
        selection.solved(evaluation(system="base"), "reranker")
    with pytest.raises(ValueError, match="lengths has shape"):
        dataclasses.replace(e, lengths=e.lengths[:, 1:])
    with pytest.raises(ValueError, match=r"languages are 39; give one for each of 40"):
        dataclasses.replace(e, languages=e.languages[1:])
    with pytest.raises(ValueError, match=r"scoring_seconds is -1\.0"):
        dataclasses.replace(e, scoring_seconds=-1.0)
    with pytest.raises(ValueError, match=r"platt is .*nan"):
        dataclasses.replace(e, platt=calibration.Platt(float("nan"), 0.0))
    with pytest.raises(ValueError, match="m is 9; choose 1 to 8"):
        selection.solved(e, "reranker", 9)
    with pytest.raises(ValueError, match="choose one of greedy"):
        selection.solved(e, "best")


# Statistics


def test_mean_interval_matches_the_normal_one() -> None:
    outcome = np.random.default_rng(1).random(400) < 0.4
    found = statistics.mean_estimate([outcome.astype(float)])
    error = outcome.std() / 20
    assert found.value == pytest.approx(outcome.mean(), abs=1e-6)
    assert found.low == pytest.approx(outcome.mean() - 1.96 * error, abs=0.004)
    assert found.high == pytest.approx(outcome.mean() + 1.96 * error, abs=0.004)


def test_a_seed_on_the_same_problems_adds_no_certainty_by_itself() -> None:
    outcome = np.random.default_rng(1).random(200)
    assert statistics.mean_estimate([outcome, outcome]) == statistics.mean_estimate([outcome])
    other = np.random.default_rng(2).random(200)
    one, two = statistics.mean_estimate([outcome]), statistics.mean_estimate([outcome, other])
    assert (two.high - two.low) / (one.high - one.low) == pytest.approx(math.sqrt(0.5), rel=0.1)


def test_seeds_weigh_the_same_whatever_their_problems() -> None:
    assert statistics.mean_estimate([np.ones(10), np.zeros(90)]).value == 0.5


def test_pairing_removes_what_problems_share() -> None:
    base = np.random.default_rng(0).random(300)
    found = statistics.mean_estimate([(base + 0.1) - base])
    assert (found.value, found.low, found.high) == (0.1, 0.1, 0.1)


def test_auc_by_hand() -> None:
    passed = np.array([[True, False], [True, False]])
    scores = np.array([[3.0, 1.0], [1.0, 2.0]])
    # Correct 3 and 1 against incorrect 1 and 2: wins 1, 1, 1/2, 0 of four.
    found = statistics.auc([passed], [scores])
    assert found is not None
    assert found.value == 0.625
    # Within problems: 3 > 1, not 1 > 2.
    pairwise = statistics.pairwise_accuracy([passed], [scores])
    assert pairwise is not None
    assert pairwise.value == 0.5


def test_auc_needs_comparable_scores_and_pairwise_accuracy_does_not() -> None:
    rng = np.random.default_rng(0)
    passed = rng.random((50, 6)) < 0.5
    scores = passed + 10 * rng.normal(size=(50, 1))
    auc, pairwise = statistics.auc([passed], [scores]), statistics.pairwise_accuracy([passed], [scores])
    assert auc is not None
    assert pairwise is not None
    assert pairwise.value == 1.0
    assert auc.value < 0.7
    assert auc.low < auc.value < auc.high


def test_a_problem_drawn_twice_counts_as_two() -> None:
    rng = np.random.default_rng(0)
    passed, scores = rng.random((6, 5)) < 0.5, rng.normal(size=(6, 5))
    drawn = np.array([0, 0, 0, 2, 3, 5])
    weights = np.bincount(drawn, minlength=6)[None] / 6
    for measured, statistic in (
        (statistics.auc, statistics._auc_statistic),
        (statistics.pairwise_accuracy, statistics._pairwise_statistic),
    ):
        expected = measured([passed[drawn]], [scores[drawn]])
        assert expected is not None
        assert statistic(passed, scores)(weights)[0] == pytest.approx(expected.value, abs=1e-6)


def test_discrimination_is_undefined_without_both_kinds() -> None:
    scores = np.zeros((3, 2))
    for passed in (np.zeros((3, 2), bool), np.ones((3, 2), bool)):
        assert statistics.auc([passed], [scores]) is None
        assert statistics.pairwise_accuracy([passed], [scores]) is None


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.104, "+", "+.104"),
        (-0.0131, "+", "-.013"),
        (0.6, "", ".600"),
        (1.0, "", "1.000"),
        (0.9996, "", "1.000"),
        (-0.0001, "+", ".000"),
        (0.0, "", ".000"),
        (-1.0, "+", "-1.000"),
    ],
)
def test_decimal(value: float, sign: str, text: str) -> None:
    assert statistics.decimal(value, sign) == text


@pytest.mark.parametrize(
    ("alone", "baseline_alone", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 32),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (3000, 0, 0.0),  # beyond what a float holds on the way
    ],
)
def test_mcnemar_by_hand(alone: int, baseline_alone: int, p: float) -> None:
    assert statistics.mcnemar(alone, baseline_alone) == pytest.approx(p, abs=1e-15)


def test_mcnemar_rejects_as_often_as_it_says() -> None:
    """Two equally good answers: of all splits, those with p <= .05 have at most that probability, and nearly."""
    n = 200
    rejected = sum(math.comb(n, i) for i in range(n + 1) if statistics.mcnemar(i, n - i) <= 0.05)
    assert 0.03 < rejected / 2**n <= 0.05


# Calibration


def test_platt_finds_the_sigmoid_that_made_the_samples() -> None:
    rng = np.random.default_rng(0)
    scores = 3 * rng.normal(size=(4000, 10)) + 50
    passed = rng.random(scores.shape) < 1 / (1 + np.exp(-(0.8 * scores - 41)))
    platt = calibration.fit_platt(passed, scores)
    assert platt.slope == pytest.approx(0.8, rel=0.03)
    assert platt.intercept == pytest.approx(-41, rel=0.03)
    # At the optimum the sums of predictions and targets agree, alone and weighted by the score.
    residual = platt.probabilities(scores) - passed
    assert abs(residual.mean()) < 1e-4
    assert abs((residual * (scores - 50)).mean()) < 1e-3


def test_platt_by_hand() -> None:
    # Two scores, so the sigmoid goes through the targets' means: 0 holds two incorrect, 1 a correct and an incorrect.
    passed, scores = np.array([[False, False, True, False]]), np.array([[0.0, 0.0, 1.0, 1.0]])
    platt = calibration.fit_platt(passed, scores)
    np.testing.assert_allclose(platt.probabilities(np.array([0.0, 1.0])), [1 / 5, (2 / 3 + 1 / 5) / 2], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_platt_is_finite_where_scores_separate_or_nothing_passes(scale: float) -> None:
    scores = scale * np.arange(12.0).reshape(3, 4)
    for passed in (scores > 5 * scale, np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        p = calibration.fit_platt(passed, scores).probabilities(scores)
        assert np.isfinite(p).all()
        assert (p[passed].min() if passed.any() else 1) > (p[~passed].max() if (~passed).any() else 0)
    same = calibration.fit_platt(scores > 5 * scale, np.full((3, 4), 7.0))
    assert same.slope == 0.0
    assert same.probabilities(np.array(7.0)) == pytest.approx(0.5)


def test_reliability_and_its_error_by_hand() -> None:
    passed = np.array([[True, True, False, False], [False, True, False, True]])
    probabilities = np.array([[0.95, 0.92, 0.91, 0.12], [0.14, 0.98, 0.11, 1.0]])
    low, high = calibration.reliability([passed], [probabilities])
    assert (low.start, low.share, low.value, high.start, high.share, high.value) == (0.1, 0.375, 0, 0.9, 0.625, 0.8)
    assert low.predicted == pytest.approx((0.12 + 0.14 + 0.11) / 3, abs=1e-6)
    assert high.predicted == pytest.approx((0.95 + 0.92 + 0.91 + 0.98 + 1.0) / 5, abs=1e-6)
    error = calibration.expected_calibration_error([passed], [probabilities])
    assert error.value == pytest.approx((0.37 + abs(4.76 - 4)) / 8, abs=1e-6)
    # Of two seeds, the error is the mean of theirs; the bins are of all their samples.
    both = [passed, ~passed], [probabilities, probabilities]
    assert calibration.expected_calibration_error(*both).value == pytest.approx(
        (error.value + (3 - 0.37 + abs(4.76 - 1)) / 8) / 2, abs=1e-6
    )
    assert [b.value for b in calibration.reliability(*both)] == [0.5, 0.5]


def test_a_perfect_forecast_has_hardly_an_error_and_a_bold_one_has() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((500, 8))
    passed = rng.random(p.shape) < p
    perfect = calibration.expected_calibration_error([passed], [p])
    assert perfect.value < 0.03
    assert (perfect.low + perfect.high) / 2 == pytest.approx(perfect.value, abs=0.002)  # resamples have noise twice
    bold = 1 / (1 + ((1 - p) / p) ** 3)
    found = calibration.expected_calibration_error([passed], [bold])
    assert found.low > 0.1
    for b in calibration.reliability([passed], [p]):
        assert b.low < b.predicted < b.high


# Results and claims

ONE_ITERATION = ("sft", "ppo", "same_data", "random", "hard", "self_training")


@pytest.fixture(scope="module")
def summary() -> results.Results:
    gain = {"sft": 2.0, "ppo": 0.0, "hard": 2.0, "self_training": 2.0}
    return summarise([evaluation(s, a, gain=gain.get(a, 0.5)) for s in (0, 1) for a in ONE_ITERATION], "digest")


def test_figures_are_means_over_problems_then_seeds(summary: results.Results) -> None:
    both = [evaluation(s, "hard", gain=2.0) for s in (0, 1)]
    for rule in selection.RULES:
        means = [selection.solved(e, rule).mean() for e in both]
        assert summary.figure("hard", rule).value == pytest.approx(np.mean(means), abs=1e-6)
        assert summary.figure("hard", rule, seed=1).value == pytest.approx(means[1], abs=1e-6)
    assert summary.figure("hard", "reranker", 1).value == pytest.approx(
        summary.figure("hard", "random").value, abs=1e-6
    )
    with pytest.raises(ValueError, match=r"this run has the arms sft, ppo"):
        summary.figure("hard+ppo", "reranker")


def test_the_order_of_evaluations_does_not_matter(summary: results.Results) -> None:
    gain = {"sft": 2.0, "ppo": 0.0, "hard": 2.0, "self_training": 2.0}
    shuffled = [evaluation(s, a, gain=gain.get(a, 0.5)) for a in reversed(ONE_ITERATION) for s in (1, 0)]
    assert summarise(shuffled, "digest") == summary


def test_arms_of_one_policy_share_what_only_looks_at_samples(summary: results.Results) -> None:
    for rule in selection.POLICY_RULES:
        shared = {summary.figure(arm, rule).text() for arm in ONE_ITERATION if arm != "sft"}
        assert len(shared) == 1


def test_results_survive_the_file(summary: results.Results, tmp_path) -> None:
    path = tmp_path / "results.json"
    results.save(summary, path)
    assert results.load(path) == summary
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    # One row a line, so that a diff of two runs reads well.
    assert len(path.read_text().splitlines()) > len(summary.figures)
    for broken, said in (
        (lambda f: f.update(version=1), "version is 1"),
        (lambda f: f.pop("seeds"), "seeds"),
        (lambda f: f["figures"][0].pop("low"), "low"),
        (lambda f: f.update(extra=1), "extra"),
    ):
        fields = json.loads((tmp_path / "results.json").read_text())
        broken(fields)
        (tmp_path / "broken.json").write_text(json.dumps(fields))
        with pytest.raises(ValueError, match=rf"broken\.json is not a results file: .*{said}"):
            results.load(tmp_path / "broken.json")


def test_claims_get_the_verdict_of_their_interval(summary: results.Results) -> None:
    findings = {f.claim.title: f for f in claims.judge(summary)}
    assert findings["Reranking"].verdict == "shown"
    assert findings["Retraining on hard negatives"].verdict == "shown"
    assert findings["Self-training against hard negatives"].verdict == "not shown"
    absent = findings["Second iteration, self-training"]
    assert absent.verdict == "not run"
    assert absent.text().endswith("lacks the arm self_training+ppo or ppo. The paper: 70.9% against 69.9%.")
    reranking = summary.figure("sft", "reranker").value - summary.figure("sft", "random").value
    assert findings["Reranking"].difference.value == pytest.approx(reranking, abs=2e-6)
    assert "above 0 in 2 of 2 seeds" in findings["Reranking"].text()
    assert claims.tally(claims.judge(summary)).endswith("; 12 not run")


def test_differences_carry_mcnemars_test(summary: results.Results) -> None:
    both = [(evaluation(s, "hard", gain=2.0), evaluation(s, "ppo", gain=0.0)) for s in (0, 1)]
    answers = [(selection.answers(a, "reranker"), selection.answers(b, "reranker")) for a, b in both]
    rows = {
        d.seed: d
        for d in summary.differences
        if (d.arm, d.rule, d.baseline_arm, d.baseline_rule) == ("hard", "reranker", "ppo", "reranker")
    }
    for seed, (a, b) in enumerate(answers):
        assert (rows[seed].alone, rows[seed].baseline_alone) == ((a & ~b).sum(), (~a & b).sum())
        assert rows[seed].p_value == statistics.mcnemar(rows[seed].alone, rows[seed].baseline_alone)
    # These seeds' problems have names of their own, so that they are trials of their own.
    assert rows[None].alone == rows[0].alone + rows[1].alone
    assert rows[None].p_value == statistics.mcnemar(rows[None].alone, rows[None].baseline_alone)
    (finding,) = [f for f in claims.judge(summary) if f.claim.title == "Retraining on hard negatives"]
    assert finding.alone() == f"{rows[None].alone} : {rows[None].baseline_alone}"
    assert finding.p_value() == "<.001"


def test_seeds_on_the_same_problems_have_no_p_value_together() -> None:
    again = dataclasses.replace(evaluation(1), problems=evaluation(0).problems)
    pooled, first, second = summarise([evaluation(0), again], "").differences
    assert (pooled.seed, pooled.p_value) == (None, None)
    assert first.p_value is not None
    assert second.p_value is not None
    assert claims.judge(summarise([evaluation(0), again], ""))[0].p_value() == ""


def test_figures_by_language_are_those_of_its_problems_alone() -> None:
    languages = ("cpp", "py", "rs")
    whole = [evaluation(s, languages=languages) for s in (0, 1)]
    found = summarise(whole, "")
    assert found.languages == languages
    alone = summarise([e.of_language("py") for e in whole], "")
    assert alone.languages == ("py",)
    assert alone.problems == (13, 13)
    for rule in selection.RULES:
        here = found.figure("sft", rule, language="py")
        assert here.text() == alone.figure("sft", rule).text()
    assert found.discrimination("sft", "auc", language="py").text() == alone.discrimination("sft", "auc").text()
    assert not [f for f in alone.figures if f.language]
    sizes = {"cpp": 14, "py": 13, "rs": 13}
    mean = sum(found.figure("sft", "reranker", language=name).value * size for name, size in sizes.items()) / 40
    assert mean == pytest.approx(found.figure("sft", "reranker").value, abs=1e-5)
    with pytest.raises(ValueError, match=r"language 'java'; this run has .* the languages cpp, py, rs"):
        found.figure("sft", "reranker", language="java")
    with pytest.raises(ValueError, match="seed 1, arm 'sft': the languages py, other evaluations have cpp, py, rs"):
        summarise([whole[0], evaluation(1)], "")


def test_costs_are_of_a_problem() -> None:
    e = evaluation(problems=3, n=2)
    e = dataclasses.replace(
        e,
        lengths=np.array([[10, 20], [30, 40], [50, 60]]),
        scores=np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]),
        sampling_seconds=6.0,
        scoring_seconds=0.0,
    )
    found = summarise([e], "").cost("sft")
    assert (found.tokens, found.chosen_tokens) == (35, pytest.approx((20 + 30 + 55) / 3, abs=1e-6))
    assert (found.sampling_seconds, found.scoring_seconds) == (2.0, None)
    assert "not measured" in render.markdown(summarise([e], ""))


def test_a_worse_arm_contradicts() -> None:
    bad = [evaluation(0, "sft", gain=-4.0)]
    finding = claims.judge(summarise(bad, ""))[0]
    assert finding.verdict == "contradicted"
    assert finding.difference.high < 0
    assert "+" not in finding.difference.text("+")


def test_every_claim_compares_known_arms() -> None:
    for claim in claims.CLAIMS:
        for arm, rule in (claim.better, claim.baseline):
            assert arm in ARMS
            assert rule in selection.RULES


def test_summaries_refuse_what_cannot_be_compared() -> None:
    one, other = evaluation(0, "ppo"), evaluation(0, "hard")
    with pytest.raises(ValueError, match="arm 'hard' has no evaluation of seed 1"):
        summarise([one, other, evaluation(1, "ppo")], "")
    with pytest.raises(ValueError, match="seed 0 has two evaluations of arm 'ppo'"):
        summarise([one, one], "")
    with pytest.raises(ValueError, match="other samples of policy 'ppo'"):
        summarise([one, dataclasses.replace(other, passed=~other.passed)], "")
    with pytest.raises(ValueError, match="other problems than arm 'ppo'"):
        summarise([one, dataclasses.replace(other, problems=other.problems[::-1])], "")
    with pytest.raises(ValueError, match="draw equally many"):
        summarise([one, evaluation(0, "sft", n=4)], "")
    with pytest.raises(ValueError, match="empty"):
        summarise([], "")


def test_a_model_that_solves_nothing_has_zeros_and_no_auc(tmp_path) -> None:
    e = evaluation()
    nothing = summarise([dataclasses.replace(e, passed=np.zeros_like(e.passed))], "")
    assert {(f.value, f.low, f.high) for f in nothing.figures} == {(0.0, 0.0, 0.0)}
    assert {d.measure for d in nothing.discriminations} == {"expected_calibration_error"}
    assert nothing.discrimination("sft", "auc") is None
    results.save(nothing, tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == nothing


# What people see


def printed(summary: results.Results, width: int) -> str:
    text = io.StringIO()
    render.print_results(summary, Console(file=text, width=width, force_terminal=True, color_system=None))
    return text.getvalue()


def test_the_terminal_table_holds_every_figure_in_eighty_columns(summary: results.Results) -> None:
    text = printed(summary, 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    for _, cells, _ in render.table_rows(summary):
        assert all(statistics.decimal(cell.value) in text for cell in cells if cell)
    assert "Hard against random negatives" in text
    # Arms that did not run are counted, not listed.
    assert "Second iteration" not in text


def test_a_pipe_gets_a_wide_plain_table(summary: results.Results) -> None:
    text = io.StringIO()
    render.print_results(summary, Console(file=text, width=40))
    assert "\x1b" not in text.getvalue()
    assert "PPO, reranker 2 (random negatives) " in text.getvalue()


def test_markdown_has_one_row_an_arm_and_repeats_no_sample_figure(summary: results.Results) -> None:
    page, *others = render.markdown(summary).split("\n## ")
    assert [part.splitlines()[0] for part in others] == ["pass@k", "Rerankers", "Quality and cost", "Claims"]
    for part in others:
        assert len({line.count("|") for line in part.splitlines() if line.startswith("|")}) == 1
    lines = page.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {8}
    assert [row[0] for row in rows[2:]] == [ARMS[arm] for arm in ONE_ITERATION]
    assert rows[2][1] == summary.figure("sft", "random").text()
    # control, random, hard and self_training choose among the samples of the row of ppo.
    assert [row[1] == '"' for row in rows[2:]] == [False, False, True, True, True, True]


def test_markdown_has_pass_at_k_once_a_policy_and_languages_where_there_are_several() -> None:
    found = summarise([evaluation(0, arm, languages=("cpp", "py")) for arm in ("sft", "ppo", "hard")], "")
    page = render.markdown(found)
    lines = page.split("## pass@k\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == ["policy", "k = 1", "k = 2", "k = 4", "k = 8"]
    for row, name, arm in ((cells[2], "SFT", "sft"), (cells[3], "PPO", "ppo")):
        assert row == [name, *(found.figure(arm, "oracle", k).text() for k in (1, 2, 4, 8))]
    assert "## By language\n\n| arm | cpp | py |" in page
    figure, auc = found.figure("hard", "reranker", language="py"), found.discrimination("hard", "auc", language="py")
    assert f"{figure.text()}, {statistics.decimal(auc.value)} |" in page


class Page(HTMLParser):
    """What a browser would make of a page: its elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


HOSTILE = "</pre></style><script>fetch('//evil')</script><img src=x onerror=alert(1)> &lt; \u202e\x1b[31m\ud800\"'"
RUN = report.Run(HOSTILE, HOSTILE, {"sft": 61.4, HOSTILE: 1.0}, {"jax": HOSTILE}, HOSTILE)


@pytest.fixture(scope="module")
def page(summary: results.Results) -> str:
    evaluations = [evaluation(s, a) for s in (0, 1) for a in ONE_ITERATION]
    rows = [
        {"step": i, "score": i / 9, "kl": 0.1, "length": 9.0, "pass_rate": None if i % 2 else 0.4} for i in range(9)
    ]
    del rows[3]["pass_rate"]
    losses = [
        plots.Curve("SFT", seed, [{"step": i, "loss": 1 / (i + seed + 1)} for i in range(900)]) for seed in (0, 1)
    ]
    negative = report.HardNegative(1, HOSTILE, HOSTILE, HOSTILE, 2.5, HOSTILE)
    ppo = [plots.Curve("ppo", seed, rows[: 9 - seed]) for seed in (0, 1)]
    return report.report(summary, evaluations, RUN, ppo, losses, [negative])


def test_a_hostile_completion_stays_text(page: str) -> None:
    parsed = Page(page)
    assert not {"script", "img", "iframe", "link", "base", "form", "object"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.words.count("<script>fetch('//evil')</script>") >= 6
    assert "\u202e" not in page
    assert "\x1b" not in page
    page.encode("utf-8")


def test_the_report_fetches_nothing(page: str) -> None:
    fetching = [
        (n, v) for n, v in Page(page).attributes if n in ("src", "href", "xlink:href", "data", "action", "srcset")
    ]
    assert fetching
    assert all(value and value.startswith("#") for _, value in fetching)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_report_holds_the_table_the_claims_and_every_figure(page: str, summary: results.Results) -> None:
    parsed = Page(page)
    for _, cells, _ in render.table_rows(summary):
        assert all(statistics.decimal(cell.value) in parsed.words for cell in cells if cell)
    for finding in claims.judge(summary):
        assert finding.claim.sentence in parsed.words
        assert finding.interval() in parsed.words
    labels = [value for name, value in parsed.attributes if name == "aria-label"]
    assert "PPO training curves" in labels
    assert "Reliability: pass rate against predicted probability, for each arm" in labels
    for _, estimates in render.pass_at_k_rows(summary):
        assert all(statistics.decimal(e.value) in parsed.words for e in estimates)
    for arm in ONE_ITERATION:
        assert summary.discrimination(arm, "expected_calibration_error").text() in parsed.words
    assert "By language" not in parsed.words
    assert "1 min 01 s" in parsed.words


def test_figures_take_their_colours_from_the_page(page: str) -> None:
    assert "#00000" not in page
    style = page[page.index("<style>") : page.index("</style>")]
    for name in set(re.findall(r"var\(--(\w+)\)", page)):
        # Once for light and once for dark.
        assert style.count(f"--{name}:") == 2, name


def test_the_same_run_makes_the_same_report(summary: results.Results) -> None:
    evaluations = [evaluation(s, a) for s in (0, 1) for a in ONE_ITERATION]
    assert report.report(summary, evaluations, RUN) == report.report(summary, evaluations, RUN)


def test_a_report_of_one_arm_that_solves_nothing() -> None:
    e = evaluation()
    e = dataclasses.replace(e, passed=np.zeros_like(e.passed), scores=np.zeros_like(e.scores))
    page = report.report(summarise([e], ""), [e], RUN)
    assert "AUC undefined" in page
    assert "0.0%" in page
    assert "nan" not in Page(page).words.lower()
    assert "| undefined |" in render.markdown(summarise([e], ""))


def test_a_report_of_several_languages_has_each() -> None:
    of_languages = [evaluation(0, arm, languages=("cpp", "py")) for arm in ("sft", "ppo")]
    found = summarise(of_languages, "")
    words = Page(report.report(found, of_languages, RUN)).words
    assert "By language" in words
    for arm in ("sft", "ppo"):
        for language in ("cpp", "py"):
            assert statistics.decimal(found.figure(arm, "reranker", language=language).value) in words


def test_long_blocks_are_cut_where_they_matter_least() -> None:
    assert markup.block("a" * 5_000) == "a" * 3_000 + "\n[2000 characters left out]"
    assert markup.block("a" * 5_000 + "end", keep_end=True).endswith("aend")


# Comparison


def test_runs_stand_beside_each_other_with_what_differs() -> None:
    one = summarise([evaluation(arm=arm) for arm in ("sft", "ppo")], "a")
    two = summarise([evaluation(arm=arm, gain=3.0) for arm in ("sft", "ppo", "hard")], "b")
    configs = {"ppo.kl_coef": "0.15", "seeds": "[0]"}, {"ppo.kl_coef": "0.5", "seeds": "[0]", "lora.rank": "8"}
    lines = comparison({"one": (configs[0], one), "two": (configs[1], two)}).splitlines()
    assert "|  | one | two |" in lines
    assert "| ppo.kl_coef | 0.15 | 0.5 |" in lines
    assert "| lora.rank |  | 8 |" in lines
    assert not any("seeds" in line for line in lines)  # is the same
    hard = two.figure("hard", "reranker").text()
    assert f"| PPO, reranker 2 (hard negatives): reranker |  | {hard} |" in lines
    assert not any(line.startswith("| PPO, reranker 2 (hard negatives): random") for line in lines)  # PPO's own
    assert one.figure("ppo", "random").text() in next(
        line for line in lines if line.startswith("| PPO, reranker 1: random")
    )
    shown = claims.judge(two)[0]
    assert next(line for line in lines if line.startswith("| Reranking |")).endswith(
        f"{shown.verdict} {shown.interval()} |"
    )
    assert any(line.startswith("| Retraining on hard negatives |  | ") for line in lines)  # one lacks that arm
