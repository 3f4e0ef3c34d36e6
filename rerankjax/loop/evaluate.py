"""Evaluates systems: a policy's samples of each evaluation set, executed, and scored if there is a reranker."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from rerankjax.candidates.candidate import Candidate
from rerankjax.loop import selection, stages
from rerankjax.loop.problem_sets import DEV
from rerankjax.loop.seed_run import SeedRun
from rerankjax.loop.stages import BASE, SFT, ParamsLoader
from rerankjax.reranker.ensembles import ENSEMBLES, combined, standardised
from rerankjax.results.calibration import Platt, fit_platt
from rerankjax.results.evaluation import Evaluation, Likelihood
from rerankjax.results.selection import choose_k, choose_lambda, rules_of, solved
from rerankjax.run.rundir import stage_seconds
from rerankjax.sandbox import Verdict

PAIRS = {
    "same_data": "same data",
    "random": "random negatives",
    "hard": "hard negatives",
    "self_training": "self-training",
}
POLICIES = {BASE: "Base model", SFT: "SFT", "ppo": "PPO"}


def policy_name(run: SeedRun, iteration: str) -> str:
    """The name of an iteration's policy and of its stage."""
    depth = run.config.depth_of(iteration)
    return "ppo" if depth == 1 else f"ppo{depth}-{iteration}"


@dataclasses.dataclass(frozen=True)
class _System:
    """A policy, and how its samples are scored; without a reranker, `reranker` is "" and later fields are empty."""

    system: str
    label: str
    policy: str
    policy_label: str
    params: ParamsLoader
    reranker: str = ""
    log_prob_weight: float = 0.0
    sft_log_prob_weight: float = 0.0
    platt: Platt | None = None
    dev: Mapping[str, float] = dataclasses.field(default_factory=dict)


def evaluate_policy(run: SeedRun, system: str, policy: str, params: ParamsLoader) -> Iterator[Evaluation]:
    """The policy alone, without a reranker, on each evaluation set."""
    label = POLICIES.get(policy, policy)
    alone = _System(system, label, policy, label, params)
    for name in run.config.evaluation:
        sampled = stages.candidates(run, policy, params, name)
        yield _evaluation(run, name, alone, sampled, None, 0.0, None)


def evaluate(
    run: SeedRun,
    iteration: str,
    policy: str,
    params: ParamsLoader,
    reranker: str,
    reranker_params: ParamsLoader,
    sft: ParamsLoader,
) -> Iterator[Evaluation]:
    """The policy's samples of each evaluation set with the scores of a reranker.

    iteration: the one that the system belongs to. Weights are chosen, and probabilities fitted, on the dev split.
    """
    own_policy = policy == policy_name(run, iteration)
    depth = run.config.depth_of(iteration)
    if depth == 1:
        system, which = ("ppo", "1") if own_policy else ("sft", "1")
    else:
        system, which = f"{iteration}+ppo" if own_policy else iteration, f"{depth} ({PAIRS.get(iteration, iteration)})"
    policy_label = _policy_label(run, policy)
    label = f"{policy_label.partition(' (')[0]}, reranker {which}"

    def scores(split: str, sampled: Sequence[Candidate]) -> tuple[np.ndarray, float]:
        split_scores = stages.scores(run, reranker, reranker_params, policy, split, sampled)
        return split_scores, stage_seconds(run.path(f"scores/{reranker}/{policy}-{split}"))

    yield from _reranked(run, _System(system, label, policy, policy_label, params, reranker), scores, sft)


def evaluate_ensembles(
    run: SeedRun, policies: Mapping[str, ParamsLoader], rerankers: Mapping[str, ParamsLoader], sft: ParamsLoader
) -> Iterator[Evaluation]:
    """Each policy's samples of each evaluation set, with the scores of each ensemble of all rerankers."""
    for policy, ensemble in itertools.product(policies, run.config.selection.ensembles if len(rerankers) > 1 else ()):
        yield from _ensemble(run, policy, policies[policy], ensemble, rerankers, sft)


def _ensemble(
    run: SeedRun,
    policy: str,
    params: ParamsLoader,
    ensemble: str,
    rerankers: Mapping[str, ParamsLoader],
    sft: ParamsLoader,
) -> Iterator[Evaluation]:
    def each(split: str, sampled: Sequence[Candidate]) -> np.ndarray:
        per_reranker = [stages.scores(run, name, load, policy, split, sampled) for name, load in rerankers.items()]
        return np.stack(per_reranker).reshape(len(rerankers), -1, run.samples(split)).astype(float)

    dev = stages.candidates(run, policy, params, DEV)
    dev_scores = each(DEV, dev)
    passed = _grid(dev, run.samples(DEV), "passed")
    k = choose_k(passed, standardised(dev_scores, dev_scores), run.config.selection.spreads)

    def scores(split: str, sampled: Sequence[Candidate]) -> tuple[np.ndarray, float]:
        grid = combined(ensemble, standardised(each(split, sampled), dev_scores), k)
        return grid.ravel(), sum(stage_seconds(run.path(f"scores/{name}/{policy}-{split}")) for name in rerankers)

    label = _policy_label(run, policy)
    title = f"{label.partition(' (')[0]}, {ENSEMBLES[ensemble]} of {len(rerankers)} rerankers"
    system = _System(f"{policy}/{ensemble}", title, policy, label, params, ensemble)
    yield from _reranked(run, system, scores, sft)


Scores = Callable[[str, Sequence[Candidate]], tuple[np.ndarray, float]]  # (split, samples) -> scores, seconds


def _reranked(run: SeedRun, system: _System, scores: Scores, sft: ParamsLoader) -> Iterator[Evaluation]:
    """The system on each evaluation set, with weights chosen, and rules measured, on the dev split."""
    policy = system.policy
    dev = stages.candidates(run, policy, system.params, DEV)
    passed, log_probabilities = (_grid(dev, run.samples(DEV), name) for name in ("passed", "log_probability"))
    dev_scores, seconds = scores(DEV, dev)
    grid, likelihood = dev_scores.reshape(passed.shape), _likelihood(run, system, sft, DEV, dev)
    weights = run.config.log_prob_weights
    system = dataclasses.replace(
        system,
        log_prob_weight=choose_lambda(passed, grid, log_probabilities, weights),
        sft_log_prob_weight=choose_lambda(passed, grid, likelihood.sft, weights) if likelihood else 0.0,
        platt=fit_platt(passed, grid),
    )
    on_dev = _evaluation(run, DEV, system, dev, dev_scores, seconds, likelihood)
    # The dev split has no greedy answers, and the oracle is not a rule that one can choose.
    rules = [rule for rule in rules_of(on_dev) if rule not in ("greedy", "oracle")]
    system = dataclasses.replace(system, dev={rule: float(solved(on_dev, rule).mean()) for rule in rules})
    for name in run.config.evaluation:
        sampled = stages.candidates(run, policy, system.params, name)
        likelihood = _likelihood(run, system, sft, name, sampled)
        yield _evaluation(run, name, system, sampled, *scores(name, sampled), likelihood)


def _likelihood(
    run: SeedRun, system: _System, sft: ParamsLoader, split: str, sampled: Sequence[Candidate]
) -> Likelihood | None:
    """The likelihood of the policy's samples under the SFT model and the policy; None unless the config asks for it."""
    if not run.config.selection.sft_log_probs:
        return None
    start, policy, n = stages.start_policy(run), system.policy, run.samples(split)
    under_sft = selection.log_probs(run, start, sft, policy, split, sampled)
    own = selection.log_probs(run, policy, system.params, policy, split, sampled) if policy != start else under_sft
    lengths = _grid(sampled, n, "length")
    return Likelihood(under_sft.reshape(-1, n) / lengths, (own - under_sft).reshape(-1, n))


def _policy_label(run: SeedRun, policy: str) -> str:
    if policy in POLICIES:
        return POLICIES[policy]
    number, _, iteration = policy.removeprefix("ppo").partition("-")
    return f"PPO {number} ({PAIRS.get(iteration, iteration)})"


def _evaluation(
    run: SeedRun,
    name: str,
    system: _System,
    sampled: Sequence[Candidate],
    scores: np.ndarray | None,
    scoring_seconds: float,
    likelihood: Likelihood | None,
) -> Evaluation:
    """The system's samples of an evaluation set, or of the dev split, whose missing greedy answers count as failed."""
    policy, n = system.policy, run.samples(name)
    answers = stages.greedy(run, policy, system.params, name) if name != DEV else []
    problems = tuple(c.problem for c in sampled[::n])
    language_of = {p.name: p.language for p in run.problems[name].originals}
    passed = _grid(sampled, n, "passed")
    return Evaluation(
        seed=run.seed,
        evaluation_set=name,
        system=system.system,
        label=system.label,
        policy=policy,
        policy_label=system.policy_label,
        reranker=system.reranker,
        problems=problems,
        programs=tuple(tuple(c.completion for c in sampled[i : i + n]) for i in range(0, len(sampled), n)),
        passed=passed,
        greedy=np.array([c.passed for c in answers]) if answers else np.zeros(len(passed), bool),
        scores=None if scores is None else scores.reshape(passed.shape),
        log_probabilities=_grid(sampled, n, "log_probability"),
        lengths=_grid(sampled, n, "length"),
        log_prob_weight=system.log_prob_weight,
        platt=system.platt,
        languages=tuple(language_of[problem] for problem in problems),
        sampling_seconds=stage_seconds(run.path(f"candidates/{policy}-{name}")),
        scoring_seconds=scoring_seconds,
        greedy_lengths=np.array([c.length for c in answers]) if answers else None,
        greedy_seconds=stage_seconds(run.path(f"greedy/{policy}-{name}")) if answers else 0.0,
        sandbox_errors=sum(c.verdict == Verdict.SANDBOX_ERROR for c in (*sampled, *answers)),
        caught=sum(c.verdict == Verdict.CHEATED for c in (*sampled, *answers)),
        executed=selection.outputs(run, policy, name, sampled) if run.config.selection.execute else None,
        likelihood=likelihood,
        sft_log_prob_weight=system.sft_log_prob_weight,
        dev=system.dev,
    )


def _grid(sampled: Sequence[Candidate], n: int, field: str) -> np.ndarray:
    """A field of candidates, which are grouped by problem, as an array [problems, n]."""
    return np.array([getattr(c, field) for c in sampled]).reshape(-1, n)
