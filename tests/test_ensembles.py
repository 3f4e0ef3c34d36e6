"""Ensembles of rerankers, and answers at their KL to the SFT model, worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest
from evaluations import evaluation

from rerankjax.reranker.ensembles import ENSEMBLES, combined, standardised
from rerankjax.results import plots, render, results, selection
from rerankjax.results.divergence import best_of_n_divergence, divergence
from rerankjax.results.evaluation import Evaluation, Likelihood
from rerankjax.results.selection import choose_k
from rerankjax.results.summary import summarise


def test_rerankers_come_on_one_scale_by_the_dev_split() -> None:
    dev = np.array([[[1.0, 3.0]], [[10.0, 30.0]]])  # means 2 and 20, spreads 1 and 10
    found = standardised(np.array([[[4.0, 2.0]], [[0.0, 25.0]]]), dev)
    np.testing.assert_allclose(found, [[[2.0, 0.0]], [[-2.0, 0.5]]])
    np.testing.assert_allclose(standardised(np.ones((1, 1, 2)), np.ones((1, 1, 2))), 0.0)  # one that says nothing


def test_each_ensemble_by_hand() -> None:
    scores = np.array([[[2.0, 1.0, -1.0]], [[-2.0, 1.0, 1.0]]])
    np.testing.assert_allclose(combined("mean", scores, 9.0), [[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(combined("minimum", scores, 9.0), [[-2.0, 1.0, -1.0]])
    np.testing.assert_allclose(combined("lower_bound", scores, 0.5), [[-1.0, 1.0, -0.5]])
    with pytest.raises(ValueError, match="ensemble is 'median'; choose one of mean, minimum, lower_bound"):
        combined("median", scores, 0.5)


def test_one_reranker_is_its_own_ensemble() -> None:
    scores = np.random.default_rng(0).normal(size=(1, 4, 5))
    for ensemble in ENSEMBLES:
        np.testing.assert_allclose(combined(ensemble, scores, 2.0), scores[0])


def test_k_is_the_least_that_solves_most_of_dev() -> None:
    # Sample 0 is liked by one alone: mean 1.5, spread 1.5; sample 1 passes: mean 1, spread 0. From k = 1/3 it wins.
    scores, passed = np.array([[[3.0, 1.0]], [[0.0, 1.0]]]), np.array([[False, True]])
    assert choose_k(passed, scores, (2.0, 0.5, 1.0, 0.25)) == 0.5
    assert choose_k(~passed, scores, (2.0, 0.5, 0.25)) == 0.25


def test_best_of_n_is_as_far_as_known() -> None:
    assert best_of_n_divergence(1) == 0.0
    assert best_of_n_divergence(4) == pytest.approx(math.log(4) - 0.75)
    # By its definition: the best of n has density n u^(n-1) over the quantile u of one sample.
    u = (np.arange(200_000) + 0.5) / 200_000
    density = 16 * u**15
    assert (density * np.log(density)).mean() == pytest.approx(best_of_n_divergence(16), abs=1e-4)


def with_likelihood(system: str, log_ratio: np.ndarray, seed: int = 0) -> Evaluation:
    e = evaluation(seed, system, problems=len(log_ratio), n=log_ratio.shape[1])
    return dataclasses.replace(e, likelihood=Likelihood(e.log_probabilities - 0.1, log_ratio), sft_log_prob_weight=2.0)


def test_divergences_by_hand() -> None:
    e = with_likelihood("ppo", np.array([[1.0, 3.0], [0.0, -1.0]]))
    e = dataclasses.replace(e, scores=np.array([[0.0, 1.0], [2.0, 2.0]]))
    np.testing.assert_allclose(divergence(e, "random"), [2.0, -0.5])
    np.testing.assert_allclose(divergence(e, "reranker") - best_of_n_divergence(2), [3.0, -0.5])  # the tie is shared
    with pytest.raises(ValueError, match="rule 'majority': the KL is unknown"):
        divergence(e, "majority")
    with pytest.raises(ValueError, match="the KL is unknown"):
        divergence(evaluation(), "random")
    with pytest.raises(ValueError, match=r"likelihood\.log_ratio is not a finite \(2, 2\)"):
        dataclasses.replace(e, likelihood=Likelihood(e.scores, e.scores * np.nan))


def test_the_sft_model_can_outvote_the_reranker() -> None:
    e = with_likelihood("ppo", np.zeros((1, 3)))
    e = dataclasses.replace(
        e,
        passed=np.array([[False, True, False]]),
        scores=np.array([[3.0, 2.0, 0.0]]),
        likelihood=Likelihood(np.array([[-1.0, -0.25, 0.0]]), np.zeros((1, 3))),
        sft_log_prob_weight=2.0,
    )
    assert selection.solved(e, "reranker") == 0.0
    assert selection.solved(e, selection.SFT_RULE) == 1.0  # 1, 1.5, 0
    assert selection.answers(e, selection.SFT_RULE).tolist() == [True]
    with pytest.raises(ValueError, match="system 'sft' has no SFT log-probabilities"):
        selection.solved(evaluation(), selection.SFT_RULE)


@pytest.fixture(scope="module")
def summary() -> results.Results:
    rng = np.random.default_rng(0)
    evaluations = [with_likelihood("sft", np.zeros((30, 8)), s) for s in (0, 1)]
    evaluations += [with_likelihood("ppo", rng.normal(2.0, 1.0, (30, 8)), s) for s in (0, 1)]
    (found,) = summarise(evaluations, "digest")
    return found


def test_results_hold_each_systems_kl(summary: results.Results, tmp_path) -> None:
    assert summary.divergence("sft", "random").value == 0.0
    assert summary.divergence("sft", "reranker").value == pytest.approx(best_of_n_divergence(8), abs=1e-6)
    ppo = summary.divergence("ppo", "random")
    assert ppo.low < 2.0 < ppo.high
    seeds = [summary.divergence("ppo", "random", seed).value for seed in (0, 1)]
    assert ppo.value == pytest.approx(np.mean(seeds), abs=1e-6)
    results.save([summary], tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == (summary,)
    page = render.markdown([summary])
    assert f"| PPO, reranker 1 | {ppo.text()} | {summary.figure('ppo', 'random').text()} |" in page
    (without,) = summarise([evaluation()], "")
    assert without.divergences == ()
    assert "Quality and KL" not in render.markdown([without])


def test_the_plot_has_the_curve_and_each_policy(summary: results.Results) -> None:
    svg = plots.solved_by_divergence(summary)
    assert "SFT, reranker 1" in svg
    assert "PPO, reranker 1" in svg
    for n in (2, 4, 8):
        assert f">{n}</text>" in svg
