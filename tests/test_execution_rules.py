"""Rules that look at what programs give on the prompt's inputs, worked out by hand; and what the dev split chooses."""

import dataclasses
import io

import numpy as np
import pytest
from evaluations import evaluation
from rich.console import Console

from rerankjax.results import claims, clusters, render, results, selection, statistics
from rerankjax.results.calibration import Platt
from rerankjax.results.evaluation import Evaluation
from rerankjax.results.summary import summarise

# Six samples of one problem. Sample 0 passes; it and 5 reproduce the prompt's example. By outputs: 0 and 1 differ from
# all, 2 to 4 gave the same, 5 gave nothing.
PASSED = np.array([[True, False, False, False, False, False]])
REPRODUCES = np.array([[True, False, False, False, False, True]])
CLUSTERS = np.array([[0, 1, 2, 2, 2, -1]])


def six(scores: list[float], **changes: object) -> Evaluation:
    """Scores are log-odds of passing."""
    arrays = {"passed": PASSED, "reproduces": REPRODUCES, "clusters": CLUSTERS} | changes
    return dataclasses.replace(
        evaluation(problems=1, n=6),
        passed=arrays["passed"],
        scores=np.array([scores]),
        platt=Platt(1.0, 0.0),
        executed=clusters.Executed(arrays["reproduces"], arrays["clusters"], 1, 6, 3.0),
    )


def answer(e: Evaluation, rule: str) -> tuple[float, bool]:
    return selection.solved(e, rule)[0], bool(selection.answers(e, rule)[0])


def test_each_rule_by_hand() -> None:
    e = six([0.0, 4.0, -1.0, -1.0, -1.0, 3.0])
    assert answer(e, "reranker") == (0.0, False)  # sample 1
    assert answer(e, "examples") == (0.5, True)  # 0 or 5; the earlier
    assert answer(e, "examples+reranker") == (0.0, False)  # of 0 and 5, the latter
    assert answer(e, "clusters") == (0.0, False)  # three of the same
    assert answer(e, "examples+clusters") == (1.0, True)  # 5 gave nothing, so that 0 is the one cluster
    # Probabilities: .5, .982, three times .269 = .807, and .953 in no cluster.
    assert answer(e, "mass") == (0.0, False)
    assert answer(six([0.0, 1.0, -1.0, -1.0, -1.0, 3.0]), "mass") == (0.0, False)  # .731 < .807: the three
    assert answer(six([2.0, 1.0, -1.0, -1.0, -1.0, 3.0]), "mass") == (1.0, True)  # .881
    assert answer(e, "examples+mass") == (1.0, True)


def test_of_the_best_cluster_the_best_scored_sample_is_chosen_by_mass_and_any_by_count() -> None:
    passed = np.array([[True, False, False, False, True, False]])
    e = six([0.0, 0.0, -1.0, 0.0, 2.0, 0.0], passed=passed)
    assert answer(e, "mass") == (1.0, True)
    assert answer(e, "clusters") == (pytest.approx(1 / 3), False)  # the first of the three is sample 2


def test_where_no_sample_reproduces_the_examples_all_are_left() -> None:
    e = six([0.0, 4.0, -1.0, -1.0, -1.0, 3.0], reproduces=np.zeros((1, 6), bool))
    for rule, same in {"examples": "random", "examples+reranker": "reranker", "examples+clusters": "clusters"}.items():
        assert selection.solved(e, rule) == pytest.approx(selection.solved(e, same))
    assert selection.solved(e, "examples+mass") == selection.solved(e, "mass")


def test_programs_that_gave_nothing_are_chosen_only_where_none_gave_anything() -> None:
    nothing = six([1.0] * 6, clusters=np.full((1, 6), -1))
    assert selection.solved(nothing, "clusters") == pytest.approx(PASSED.mean(1))
    one = six([1.0] * 6, clusters=np.array([[0, -1, -1, -1, -1, -1]]))
    assert selection.solved(one, "clusters") == 1.0


def test_fewer_samples_lie_between_a_random_one_and_all() -> None:
    e = six([0.0, 4.0, -1.0, -1.0, -1.0, 3.0])
    for rule in selection.EXECUTION_RULES:
        assert selection.solved(e, rule, 1) == pytest.approx(PASSED.mean(1))
        assert selection.solved(e, rule, 6) == selection.solved(e, rule)
    # Of two random samples, sample 0 is chosen unless 1 of 15 pairs has it beside 5; without the two that reproduce
    # the example (6 pairs) nothing passes: (4 + .5) / 15.
    assert selection.solved(e, "examples", 2) == pytest.approx([4.5 / 15])
    with pytest.raises(ValueError, match="m is 7; choose 1 to 6"):
        selection.solved(e, "clusters", 7)


def test_the_reranker_decides_among_those_that_reproduce_the_examples_and_shares_ties() -> None:
    passed = np.array([[True, False, False, True, False, False]])
    keep = np.array([[True, True, False, True, False, False]])
    e = six([2.0, 2.0, 9.0, 1.0, 9.0, 9.0], passed=passed, reproduces=keep)
    assert answer(e, "examples+reranker") == (0.5, True)


def test_outputs_become_clusters_by_hand() -> None:
    values = [
        # Example, then three made inputs; most programs give no value for the last.
        ("1", "2", "!ValueError", "!IndexError"),
        ("1", "2", "!ValueError", "7"),
        ("1", "2", "3", "!IndexError"),
        ("2", "2", "!ValueError", None),
        ("!NameError",) * 4,
        (None,) * 4,
    ]
    found = clusters.executed([values], [("1",)], [[""] * 6], 6, 1.5)
    # The third input counts no more than the fourth: one and two of six give a value.
    assert found.clusters.tolist() == [[0, 0, 0, 3, -1, -1]]
    assert found.reproduces.tolist() == [[True, True, True, False, False, False]]
    assert (found.covered, found.runs, found.seconds) == (1, 6, 1.5)


def test_an_examples_input_counts_however_few_give_a_value() -> None:
    found = clusters.executed([[("1",), ("!E",), ("!F",)]], [(None,)], [["a", "b", "c"]], 3, 0.0)
    assert found.clusters.tolist() == [[0, -1, -1]]
    assert found.reproduces.all()  # a value that is not shown is not asked for


def test_without_inputs_the_text_decides_as_the_majority_does() -> None:
    e = evaluation(problems=6, n=8)
    found = clusters.executed([[()] * 8] * 6, [()] * 6, e.programs, 0, 0.0)
    assert found.covered == 0
    e = dataclasses.replace(e, executed=found)
    for m in (1, 3, 8):
        np.testing.assert_array_equal(selection.solved(e, "clusters", m), selection.solved(e, "majority", m))
    np.testing.assert_array_equal(selection.solved(e, "examples+reranker"), selection.solved(e, "reranker"))


def with_outputs(seed: int, system: str, dev: dict[str, float], **changes: object) -> Evaluation:
    e = evaluation(seed, system, problems=12)
    rng = np.random.default_rng(seed)
    reproduces = e.passed | (rng.random(e.passed.shape) < 0.1)
    found = clusters.Executed(reproduces, rng.integers(-1, 3, e.passed.shape), 10, 30, 6.0)
    return dataclasses.replace(e, executed=found, dev=dev, **changes)


def one_set(evaluations: list[Evaluation]) -> results.Results:
    (found,) = summarise(evaluations, "digest")
    return found


@pytest.fixture(scope="module")
def summary() -> results.Results:
    """Two seeds, of which neither alone has the best rule of both."""
    dev = {
        "sft": [{"reranker": 0.5, "examples+reranker": 0.9}, {"reranker": 0.5, "examples+reranker": 0.3}],
        "ppo": [{"reranker": 0.6, "examples+reranker": 0.7}, {"reranker": 0.5, "examples+reranker": 0.7}],
    }
    return one_set([with_outputs(s, system, dev[system][s]) for s in (0, 1) for system in dev])


def test_the_dev_split_chooses_and_the_test_split_is_told(summary: results.Results) -> None:
    assert summary.best_answer == ("ppo", "examples+reranker")
    assert summary.paper_answer == ("ppo", "reranker")
    finding = claims.best_finding(summary)
    difference = summary.figure("ppo", "examples+reranker").value - summary.figure("ppo", "reranker").value
    assert finding.difference.value == pytest.approx(difference, abs=2e-6)
    assert len(finding.by_seed) == 2
    assert finding.difference.p_value is not None
    assert finding.interval() in render.best_text(finding)


def test_the_second_iteration_is_compared_with_what_it_should_beat() -> None:
    """Of two systems the one that dev prefers; a control is not a second iteration."""
    dev = {"ppo": 0.6, "same_data": 0.9, "self_training": 0.7, "self_training+ppo": 0.5}
    found = one_set([with_outputs(0, system, {"reranker": value}) for system, value in dev.items()])
    assert found.second_iteration == "self_training"
    findings = claims.second_iteration(found)
    figure = found.figure("self_training", "reranker").value
    others = [("self_training", "random"), ("ppo", "reranker"), ("self_training", "greedy")]
    for finding, (system, rule) in zip(findings.values(), others, strict=True):
        assert finding.difference.value == pytest.approx(figure - found.figure(system, rule).value, abs=2e-6)
    line = render.second_iteration_text(found)
    assert line.startswith("Second iteration, its reranker alone (PPO, reranker 2 (self-training), chosen on the dev")
    assert all(f"{name} {finding.interval()}, {finding.verdict}" in line for name, finding in findings.items())
    assert render.second_iteration_text(one_set([with_outputs(0, "ppo", {"reranker": 0.6})])) == ""


def test_the_paper_s_answer_can_be_the_best() -> None:
    found = one_set([with_outputs(0, "ppo", {"random": 0.6, "reranker": 0.6, "mass": 0.5})])  # of equals the paper's
    assert found.best_answer == found.paper_answer
    assert "which is the paper's answer" in render.best_text(claims.best_finding(found))


def test_nothing_is_chosen_without_a_dev_split_or_a_policy_trained_against_a_reranker() -> None:
    assert claims.best_finding(one_set([evaluation(system="ppo")])) is None
    assert claims.best_finding(one_set([evaluation()])) is None


def test_results_hold_the_rules_and_their_price(summary: results.Results, tmp_path) -> None:
    for rule in selection.EXECUTION_RULES:
        assert summary.find("ppo", rule) is not None
    assert summary.cost("ppo").output_runs == 30 / 12
    assert summary.cost("ppo", seed=1).output_seconds == 6 / 12
    assert summary.systems[0].with_inputs == (10, 10)
    results.save([summary], tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == (summary,)
    page = render.markdown([summary])
    assert "## Further rules" in page
    assert "The prompts of 20 of 24 problems show an input" in page
    assert "The cost: 5 programs and 1 s per problem, for the samples of 2 policies together." in page
    assert summary.figure("ppo", "examples+mass").text() in page


def test_a_run_without_executions_has_no_such_rows() -> None:
    found = one_set([evaluation()])
    assert {f.rule for f in found.figures} == set(selection.RULES)
    assert (found.cost("sft").output_runs, found.systems[0].with_inputs) == (None, ())
    assert "Further rules" not in render.markdown([found])
    with pytest.raises(ValueError, match="system 'sft' has no program outputs"):
        selection.solved(evaluation(), "clusters")


def test_outputs_of_other_samples_are_refused() -> None:
    e = with_outputs(0, "sft", {})
    with pytest.raises(ValueError, match=r"executed\.clusters differs from passed in shape"):
        dataclasses.replace(e, executed=dataclasses.replace(e.executed, clusters=e.executed.clusters[:, 1:]))


def test_languages_have_the_rules_too() -> None:
    e = with_outputs(0, "sft", {}, languages=("cpp", "py") * 6)
    found = one_set([e])
    half = np.mean([selection.solved(e, "mass")[i] for i in range(1, 12, 2)])
    assert found.figure("sft", "mass", language="py").value == pytest.approx(half, abs=1e-6)


def test_the_terminal_shows_rules_and_the_best_answer_in_eighty_columns(summary: results.Results) -> None:
    text = io.StringIO()
    render.print_results([summary], Console(file=text, width=80, force_terminal=True, color_system=None))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for rule in selection.EXECUTION_RULES:
        assert statistics.decimal(summary.figure("ppo", rule).value) in text.getvalue()
    assert any(line.startswith("Best on the dev split: PPO, reranker 1, examples, reranker.") for line in lines)
