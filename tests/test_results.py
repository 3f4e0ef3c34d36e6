"""Results: selection rules, intervals, figures, claims and pages against numbers worked out by hand."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from evaluations import ONE_ITERATION, evaluation, one_iteration

from rerankjax.results import calibration, claims, results, selection, statistics
from rerankjax.results.evaluation import Evaluation
from rerankjax.results.summary import summarise
from rerankjax.results.translations import common_name, mean_over_languages


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
    e = dataclasses.replace(evaluation(problems=3, n=4), passed=passed, programs=programs, greedy=passed[:, 0])
    np.testing.assert_allclose(selection.solved(e, "majority"), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(selection.solved(e, "majority", 1), passed.mean(1))
    # Of a random two, different programs tie and equal ones agree: a random sample again, up to the drawing.
    np.testing.assert_allclose(selection.solved(e, "majority", 2), passed.mean(1), atol=0.12)
    again = selection.solved(e, "majority", 3)
    np.testing.assert_array_equal(again, selection.solved(e, "majority", 3))


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
    with pytest.raises(ValueError, match="reranker is '' and scores is ndarray; give scores if there is a reranker"):
        dataclasses.replace(e, reranker="")
    with pytest.raises(ValueError, match="reranker is 'sft' and platt is NoneType"):
        dataclasses.replace(e, platt=None)
    with pytest.raises(ValueError, match="problems has 40 names; give 40, each once within a language"):
        dataclasses.replace(e, problems=("p",) * 40)
    with pytest.raises(ValueError, match="caught is -1"):
        dataclasses.replace(e, caught=-1)
    with pytest.raises(ValueError, match="system 'base' has no reranker"):
        selection.solved(evaluation(system="base"), "reranker")
    with pytest.raises(ValueError, match="lengths has shape"):
        dataclasses.replace(e, lengths=e.lengths[:, 1:])
    with pytest.raises(ValueError, match=r"there are 39 languages; give one for each of 40"):
        dataclasses.replace(e, languages=e.languages[1:])
    with pytest.raises(ValueError, match=r"scoring_seconds is -1\.0"):
        dataclasses.replace(e, scoring_seconds=-1.0)
    with pytest.raises(ValueError, match=r"platt is .*nan"):
        dataclasses.replace(e, platt=calibration.Platt(float("nan"), 0.0))
    with pytest.raises(ValueError, match="m is 9; choose 1 to 8"):
        selection.solved(e, "reranker", 9)
    with pytest.raises(ValueError, match="choose one of greedy"):
        selection.solved(e, "best")


# Results and claims

BASE_CLAIM = "PPO against the base model"


def one_set(evaluations: Sequence[Evaluation]) -> results.Results:
    (of_set,) = summarise(evaluations, "digest")
    return of_set


@pytest.fixture(scope="module")
def summary() -> results.Results:
    return one_set(one_iteration())


def test_figures_are_means_over_problems_then_seeds(summary: results.Results) -> None:
    both = [evaluation(s, "hard", gain=2.0) for s in (0, 1)]
    for rule in selection.RULES:
        means = [selection.solved(e, rule).mean() for e in both]
        assert summary.figure("hard", rule).value == pytest.approx(np.mean(means), abs=1e-6)
        assert summary.figure("hard", rule, seed=1).value == pytest.approx(means[1], abs=1e-6)
    assert summary.figure("hard", "reranker", 1).value == pytest.approx(
        summary.figure("hard", "random").value, abs=1e-6
    )
    with pytest.raises(ValueError, match=r"set 'test' has the systems sft, ppo"):
        summary.figure("hard+ppo", "reranker")


def test_systems_stand_in_the_order_of_their_evaluations(summary: results.Results) -> None:
    assert [s.system for s in summary.systems] == list(ONE_ITERATION)
    backwards = one_set(one_iteration()[::-1])
    assert [s.system for s in backwards.systems] == list(ONE_ITERATION[::-1])
    # Neither this order nor that of seeds changes a figure.
    assert backwards.seeds == summary.seeds
    assert set(backwards.figures) == set(summary.figures)
    assert set(backwards.costs) == set(summary.costs)


def test_systems_of_one_policy_share_the_policys_figures(summary: results.Results) -> None:
    for rule in set(selection.POLICY_RULES) & selection.RULES.keys():
        shared = {summary.figure(system, rule).text() for system in ONE_ITERATION if system != "sft"}
        assert len(shared) == 1


def test_a_system_without_a_reranker_has_the_policys_figures_alone() -> None:
    found = one_set([evaluation(system=system) for system in ("base", "sft")])
    base, sft = found.systems
    assert (base.reranker, base.log_prob_weight, base.slope, base.intercept) == ("", (), (), ())
    assert (sft.log_prob_weight, len(sft.slope)) == ((0.5,), 1)
    assert {f.rule for f in found.figures if f.system == "base"} == set(selection.POLICY_RULES) & selection.RULES.keys()
    assert found.find("base", "reranker") is None
    for rows in (found.discriminations, found.reliabilities):
        assert {row.system for row in rows} == {"sft"}
    assert found.cost("base").chosen_tokens is None
    assert found.figure("base", "greedy").value == pytest.approx(evaluation(system="base").greedy.mean(), abs=1e-6)


def test_each_evaluation_set_has_results_of_its_own() -> None:
    of_test = [evaluation(s, system) for s in (0, 1) for system in ("sft", "ppo")]
    other = [evaluation(s, "sft", problems=9, n=4, languages=("cpp", "py"), evaluation_set="mbpp") for s in (0, 1)]
    first, second = summarise([other[0], *of_test, other[1]], "digest")
    assert (first.evaluation_set, first.problems, first.samples, first.languages) == ("mbpp", (9, 9), 4, ("cpp", "py"))
    assert second == one_set(of_test)
    assert first == one_set(other)
    with pytest.raises(ValueError, match="set 'mbpp', system 'sft' has no evaluation of seed 1; evaluate it for every"):
        summarise([*of_test, other[0]], "")


def test_results_survive_the_file(summary: results.Results, tmp_path) -> None:
    path = tmp_path / "results.json"
    other = one_set([evaluation(s, "base", languages=("cpp", "py"), evaluation_set="mbpp") for s in (0, 1)])
    results.save([summary, other], path)
    assert results.load(path) == (summary, other)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    fields = json.loads(path.read_text())
    assert list(fields) == ["version", "config_digest", "seeds", "evaluations"]
    assert [of_set["evaluation_set"] for of_set in fields["evaluations"]] == ["test", "mbpp"]
    # One row a line, so that a diff of two runs reads well.
    assert len(path.read_text().splitlines()) > len(summary.figures) + len(other.figures)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(version=2), "version is 2, but this code reads 4"),
        (lambda f: f.pop("seeds"), "its fields are config_digest; it should have config_digest, seeds"),
        (lambda f: f.update(extra=1), "its fields are config_digest, extra, seeds"),
        (lambda f: f.pop("evaluations"), "evaluations"),
        (lambda f: f["evaluations"][0].pop("samples"), "samples"),
        (lambda f: f["evaluations"][0].update(extra=1), "extra"),
        (lambda f: f["evaluations"][0]["figures"][0].pop("low"), "low"),
        (lambda f: f["evaluations"].append(3), "int"),
    ],
)
def test_a_wrong_results_file_is_refused_by_name(summary: results.Results, tmp_path, change, message) -> None:
    path = tmp_path / "broken.json"
    results.save([summary], path)
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=rf"broken\.json is not a results file: .*{message}"):
        results.load(path)


def test_claims_get_the_verdict_of_their_interval(summary: results.Results) -> None:
    findings = {f.claim.title: f for f in claims.findings_of(summary)}
    assert findings["Reranking"].verdict == "shown"
    assert findings["Retraining on hard negatives"].verdict == "shown"
    assert findings["Self-training against hard negatives"].verdict == "not shown"
    absent = findings["Second iteration, self-training"]
    assert absent.verdict == "not run"
    assert (absent.difference, absent.interval()) == (None, "")
    reranking = summary.figure("sft", "reranker").value - summary.figure("sft", "random").value
    assert findings["Reranking"].difference.value == pytest.approx(reranking, abs=2e-6)
    assert findings["Reranking"].seeds_above() == "2 of 2"
    # No base model and no second PPO.
    absent_systems = [c for c in claims.CLAIMS if any("+ppo" in s or s == "base" for s, _ in (c.better, c.baseline))]
    assert claims.tally(claims.findings_of(summary)).endswith(f"; {len(absent_systems)} not run")
    assert claims.tally(claims.findings_of(one_set([evaluation(system="base")]))) == "none was run"


def test_reranked_systems_are_compared_with_greedy_answers(summary: results.Results) -> None:
    with_base = one_set([evaluation(system="base"), evaluation(system="sft"), evaluation(system="ppo")])
    findings = {f.claim.title: f for f in claims.findings_of(with_base)}
    for title, better, baseline in (
        ("Reranking against greedy", "sft", "sft"),
        ("PPO against SFT greedy", "ppo", "sft"),
        ("PPO against its own greedy", "ppo", "ppo"),
        (BASE_CLAIM, "ppo", "base"),
    ):
        expected = with_base.figure(better, "reranker").value - with_base.figure(baseline, "greedy").value
        assert findings[title].difference.value == pytest.approx(expected, abs=2e-6)
    assert findings["Hard negatives against SFT greedy"].verdict == "not run"
    assert "Hard negatives against its own greedy" in {
        f.claim.title for f in claims.findings_of(summary) if f.difference
    }


def test_differences_carry_mcnemars_test(summary: results.Results) -> None:
    both = [(evaluation(s, "hard", gain=2.0), evaluation(s, "ppo", gain=0.0)) for s in (0, 1)]
    answers = [(selection.answers(a, "reranker"), selection.answers(b, "reranker")) for a, b in both]
    rows = {
        d.seed: d
        for d in summary.differences
        if (d.system, d.rule, d.baseline_system, d.baseline_rule) == ("hard", "reranker", "ppo", "reranker")
    }
    for seed, (a, b) in enumerate(answers):
        assert (rows[seed].alone, rows[seed].baseline_alone) == ((a & ~b).sum(), (~a & b).sum())
        assert rows[seed].p_value == statistics.mcnemar(rows[seed].alone, rows[seed].baseline_alone)
    # These seeds' problems have names of their own, so that they are trials of their own.
    assert rows[None].alone == rows[0].alone + rows[1].alone
    assert rows[None].p_value == statistics.mcnemar(rows[None].alone, rows[None].baseline_alone)
    (finding,) = [f for f in claims.findings_of(summary) if f.claim.title == "Retraining on hard negatives"]
    assert finding.alone() == f"{rows[None].alone} : {rows[None].baseline_alone}"
    assert finding.p_value() == "<.001"


def test_seeds_on_the_same_problems_have_no_p_value_together() -> None:
    again = dataclasses.replace(evaluation(1), problems=evaluation(0).problems)
    pooled, first, second = one_set([evaluation(0), again]).differences[:3]
    assert (pooled.seed, pooled.p_value) == (None, None)
    assert first.p_value is not None
    assert second.p_value is not None
    assert claims.findings_of(one_set([evaluation(0), again]))[0].p_value() == ""


def test_figures_by_language_are_those_of_its_problems_alone() -> None:
    languages = ("cpp", "py", "rs")
    whole = [evaluation(s, languages=languages) for s in (0, 1)]
    found = one_set(whole)
    assert found.languages == languages
    alone = one_set([e.of_language("py") for e in whole])
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
    with pytest.raises(ValueError, match=r"language 'java'; set 'test' has .* the languages cpp, py, rs"):
        found.figure("sft", "reranker", language="java")
    with pytest.raises(
        ValueError, match="seed 1, system 'sft': its languages are py, but those of other evaluations are cpp"
    ):
        summarise([whole[0], evaluation(1)], "")


def test_the_mean_over_languages_weighs_each_the_same() -> None:
    greedy = np.array([True, False, *[True] * 8])
    e = dataclasses.replace(evaluation(problems=10), languages=("cpp",) * 2 + ("py",) * 8, greedy=greedy)
    found = one_set([e])
    assert found.figure("sft", "greedy", language="mean").value == 0.75
    assert found.figure("sft", "greedy").value == 0.9
    for rule in selection.RULES:
        fractions = [found.figure("sft", rule, language=name).value for name in ("cpp", "py")]
        assert found.figure("sft", rule, language="mean").value == pytest.approx(np.mean(fractions), abs=1e-6)


def test_translations_have_one_name_and_problems_their_own() -> None:
    names = [("HumanEval/12", "py"), ("HumanEval_12_longest", "cpp"), ("HumanEval_12_longest-cpp", "cpp")]
    assert {common_name(name, language) for name, language in names} == {"HumanEval/12"}
    assert common_name("HumanEval/1", "py") == "HumanEval/1"
    assert common_name("MBPP/12", "py") == common_name("MBPP/12-cs", "cs") == "MBPP/12"


def test_translations_of_a_problem_are_resampled_together() -> None:
    """The same outcomes in every language add no certainty; independent ones do."""
    draws = np.random.default_rng(0).random((8, 164)) < 0.6
    languages = ("cpp", "cs", "java", "js", "php", "py", "sh", "ts")

    def width(outcomes: np.ndarray, name: Callable[[str, int], str]) -> float:
        used = languages[: len(outcomes)]
        e = dataclasses.replace(
            evaluation(problems=outcomes.size, n=1),
            languages=tuple(language for language in used for _ in range(164)),
            problems=tuple(name(language, i) for language in used for i in range(164)),
            greedy=outcomes.ravel(),
        )
        mean = mean_over_languages([e], "greedy")
        return mean.high - mean.low

    def translated(language: str, i: int) -> str:
        return f"HumanEval/{i}" if language == "py" else f"HumanEval_{i}_name"

    alone = width(draws[:1], translated)
    for name in (translated, lambda language, i: f"mbpp_{i}", lambda language, i: f"mbpp_{i}-{language}"):
        assert width(np.repeat(draws[:1], 8, 0), name) == pytest.approx(alone, abs=2 / 164)  # fractions go by 1/164
    for name in (translated, lambda language, i: f"{language}{i}"):
        assert width(draws, name) == pytest.approx(alone / np.sqrt(8), rel=0.15)


def test_costs_are_of_a_problem() -> None:
    e = evaluation(problems=3, n=2)
    e = dataclasses.replace(
        e,
        lengths=np.array([[10, 20], [30, 40], [50, 60]]),
        scores=np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]),
        sampling_seconds=6.0,
        scoring_seconds=0.0,
    )
    found = one_set([e]).cost("sft")
    assert (found.tokens, found.chosen_tokens) == (35, pytest.approx((20 + 30 + 55) / 3, abs=1e-6))
    assert (found.sampling_seconds, found.scoring_seconds) == (2.0, None)
    assert (found.greedy_tokens, found.greedy_seconds) == (None, None)
    e = dataclasses.replace(e, greedy_lengths=np.array([5, 6, 10]), greedy_seconds=1.5)
    found = one_set([e]).cost("sft")
    assert (found.greedy_tokens, found.greedy_seconds) == (7.0, 0.5)


def test_a_worse_system_contradicts() -> None:
    finding = claims.findings_of(one_set([evaluation(0, "sft", gain=-4.0)]))[0]
    assert finding.verdict == "contradicted"
    assert finding.difference.high < 0
    assert "+" not in finding.difference.text("+")


def test_every_claim_has_a_title_of_its_own_and_rules_that_exist() -> None:
    assert len({claim.title for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    assert {rule for claim in claims.CLAIMS for _, rule in (claim.better, claim.baseline)} <= selection.ALL_RULES.keys()


def test_summaries_refuse_what_cannot_be_compared() -> None:
    one, other = evaluation(0, "ppo"), evaluation(0, "hard")
    with pytest.raises(ValueError, match="system 'hard' has no evaluation of seed 1"):
        summarise([one, other, evaluation(1, "ppo")], "")
    with pytest.raises(ValueError, match="set 'test', seed 0, system 'ppo': there are two evaluations"):
        summarise([one, one], "")
    with pytest.raises(ValueError, match="its samples of policy 'ppo' differ"):
        summarise([one, dataclasses.replace(other, passed=~other.passed)], "")
    with pytest.raises(
        ValueError, match="system 'hard': its samples of policy 'ppo' differ from those of system 'ppo'"
    ):
        summarise([one, dataclasses.replace(other, greedy=~other.greedy)], "")
    with pytest.raises(ValueError, match="seed 1, system 'ppo': label is 'Other', but 'PPO, reranker 1' in seed 0"):
        summarise([one, dataclasses.replace(evaluation(1, "ppo"), label="Other")], "")
    with pytest.raises(ValueError, match="its problems differ from those of system 'ppo'"):
        summarise([one, dataclasses.replace(other, problems=other.problems[::-1])], "")
    with pytest.raises(ValueError, match="4 samples per problem, but others have 8; draw 8"):
        summarise([one, evaluation(0, "sft", n=4)], "")
    with pytest.raises(ValueError, match="empty"):
        summarise([], "")


def test_a_model_that_solves_nothing_has_zeros_and_no_auc(tmp_path) -> None:
    e = evaluation()
    nothing = one_set([dataclasses.replace(e, passed=np.zeros_like(e.passed), greedy=np.zeros_like(e.greedy))])
    assert {(f.value, f.low, f.high) for f in nothing.figures} == {(0.0, 0.0, 0.0)}
    assert {d.measure for d in nothing.discriminations} == {"expected_calibration_error"}
    assert nothing.discrimination("sft", "auc") is None
    results.save([nothing], tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == (nothing,)
