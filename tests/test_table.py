"""The table: selection rules, intervals, results and claims against numbers worked out by hand."""

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

from rerankjax.table import claims, markup, plots, render, report, results, selection, statistics
from rerankjax.table.evaluation import ARMS, Evaluation
from rerankjax.table.summary import summarise


def evaluation(seed: int = 0, arm: str = "sft", problems: int = 40, n: int = 8, gain: float = 1.0) -> Evaluation:
    """Made-up samples: the policy decides what was sampled, `gain` how well the reranker tells."""
    policy = f"ppo2/{arm[:-4]}" if arm.endswith("+ppo") else arm if arm in ("sft", "ppo") else "ppo"
    rng = np.random.default_rng([seed, *policy.encode()])
    ability = rng.normal(size=(problems, 1)) + (policy != "sft") - 0.5
    program = rng.integers(6, size=(problems, n))
    passed = ((program * 7 + np.arange(problems)[:, None]) % 6 / 6) < 1 / (1 + np.exp(-ability))
    log_probabilities = -rng.random((problems, n)) + 0.2 * passed
    scores = np.random.default_rng([seed, *arm.encode()]).normal(size=(problems, n)) + gain * passed
    return Evaluation(
        seed=seed,
        arm=arm,
        policy=policy,
        reranker=arm,
        problems=tuple(f"p{i}" for i in range(problems)),
        programs=tuple(tuple(f"return {v}" for v in row) for row in program),
        passed=passed,
        scores=scores,
        log_probabilities=log_probabilities,
        lengths=rng.integers(5, 20, size=(problems, n)),
        lam=0.5,
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
    for m in selection.sample_counts(8):
        oracle = selection.solved(e, "oracle", m)
        for rule in selection.RULES:
            outcome = selection.solved(e, rule, m)
            assert (outcome >= -1e-12).all()
            # A Monte-Carlo majority may exceed an expectation by its noise.
            assert (outcome <= oracle + (0.15 if rule == "majority" else 1e-12)).all(), rule
    for rule in selection.RULES:
        np.testing.assert_allclose(selection.solved(e, rule, 1), e.passed.mean(1))


def test_choose_lambda_by_hand_and_prefers_less_of_it() -> None:
    passed = np.array([[True, False], [False, True]])
    scores = np.array([[0.0, 1.0], [0.0, 1.0]])
    log_probabilities = np.array([[-1.0, -3.0], [-2.0, -2.0]])
    # Row 0 turns at lambda = 1/2; row 1 never does. 1 and 2 solve both, so 1.
    assert selection.choose_lambda(passed, scores, log_probabilities, [2.0, 0.0, 1.0, -1.0]) == 1.0
    assert selection.choose_lambda(passed, scores, np.zeros((2, 2)), [2.0, -1.0, 0.0]) == 0.0


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
    with pytest.raises(ValueError, match="choose one of sft, ppo"):
        dataclasses.replace(e, arm="third")
    with pytest.raises(ValueError, match="lengths has shape"):
        dataclasses.replace(e, lengths=e.lengths[:, 1:])
    with pytest.raises(ValueError, match="m is 9; choose 1 to 8"):
        selection.solved(e, "reranker", 9)
    with pytest.raises(ValueError, match="choose one of random"):
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


# Results and claims

ONE_ITERATION = ("sft", "ppo", "control", "random", "hard", "self_training")


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
        (lambda f: f.update(version=2), "version is 2"),
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
    assert claims.tally(claims.judge(summary)).endswith("; 6 not run")


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
    assert nothing.discriminations == ()
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
    lines = render.markdown(summary).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {8}
    assert [row[0] for row in rows[2:]] == [ARMS[arm] for arm in ONE_ITERATION]
    assert rows[2][1] == summary.figure("sft", "random").text()
    # control, random, hard and self_training choose among the samples of the row of ppo.
    assert [row[1] == '"' for row in rows[2:]] == [False, False, True, True, True, True]


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


def test_long_blocks_are_cut_where_they_matter_least() -> None:
    assert markup.block("a" * 5_000) == "a" * 3_000 + "\n[2000 characters left out]"
    assert markup.block("a" * 5_000 + "end", keep_end=True).endswith("aend")
