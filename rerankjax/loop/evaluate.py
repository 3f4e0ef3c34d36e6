"""Systems evaluated: a policy's samples of each evaluation set, executed, and scored where there is a reranker."""

from collections.abc import Iterator, Sequence

import numpy as np

from rerankjax.candidates.candidate import Candidate
from rerankjax.loop import stages
from rerankjax.loop.problem_sets import DEV
from rerankjax.loop.seed_run import SeedRun
from rerankjax.loop.stages import BASE, SFT, ParamsLoader
from rerankjax.results.calibration import Platt, fit_platt
from rerankjax.results.evaluation import Evaluation
from rerankjax.results.selection import choose_lambda
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
    """What the policy of an iteration is called, and its stage."""
    depth = run.config.depth_of(iteration)
    return "ppo" if depth == 1 else f"ppo{depth}-{iteration}"


def evaluate_policy(run: SeedRun, system: str, policy: str, params: ParamsLoader) -> Iterator[Evaluation]:
    """The policy alone, without a reranker, on each evaluation set."""
    label = POLICIES.get(policy, policy)
    for name in run.config.evaluation:
        yield _evaluation(run, name, system, label, policy, label, params, "", None, None, 0.0)


def evaluate(
    run: SeedRun, iteration: str, policy: str, params: ParamsLoader, reranker: str, reranker_params: ParamsLoader
) -> Iterator[Evaluation]:
    """The policy's samples of each evaluation set with the scores of a reranker.

    iteration: whose system it is. The weight of log-probabilities and the probabilities are fitted to the dev split.
    """
    dev = stages.candidates(run, policy, params, DEV)
    passed, log_probabilities = (_grid(dev, run.samples(DEV), name) for name in ("passed", "log_probability"))
    dev_scores = stages.scores(run, reranker, reranker_params, policy, DEV, dev).reshape(passed.shape)
    weight = choose_lambda(passed, dev_scores, log_probabilities, run.config.log_prob_weights)
    platt = fit_platt(passed, dev_scores)
    own_policy = policy == policy_name(run, iteration)
    depth = run.config.depth_of(iteration)
    if depth == 1:
        system, which = ("ppo", "1") if own_policy else ("sft", "1")
    else:
        system, which = f"{iteration}+ppo" if own_policy else iteration, f"{depth} ({PAIRS.get(iteration, iteration)})"
    policy_label = _policy_label(run, policy)
    label = f"{policy_label.partition(' (')[0]}, reranker {which}"
    for name in run.config.evaluation:
        sampled = stages.candidates(run, policy, params, name)
        scores = stages.scores(run, reranker, reranker_params, policy, name, sampled)
        yield _evaluation(run, name, system, label, policy, policy_label, params, reranker, scores, platt, weight)


def _policy_label(run: SeedRun, policy: str) -> str:
    if policy in POLICIES:
        return POLICIES[policy]
    number, _, iteration = policy.removeprefix("ppo").partition("-")
    return f"PPO {number} ({PAIRS.get(iteration, iteration)})"


def _evaluation(
    run: SeedRun,
    name: str,
    system: str,
    label: str,
    policy: str,
    policy_label: str,
    params: ParamsLoader,
    reranker: str,
    scores: np.ndarray | None,
    platt: Platt | None,
    weight: float,
) -> Evaluation:
    sampled = stages.candidates(run, policy, params, name)
    answers = stages.greedy(run, policy, params, name)
    n = run.samples(name)
    problems = tuple(c.problem for c in sampled[::n])
    language_of = {p.name: p.language for p in run.problems[name].originals}
    passed = _grid(sampled, n, "passed")
    scoring = run.path(f"scores/{reranker}/{policy}-{name}") if reranker else None
    return Evaluation(
        seed=run.seed,
        evaluation_set=name,
        system=system,
        label=label,
        policy=policy,
        policy_label=policy_label,
        reranker=reranker,
        problems=problems,
        programs=tuple(tuple(c.completion for c in sampled[i : i + n]) for i in range(0, len(sampled), n)),
        passed=passed,
        greedy=np.array([c.passed for c in answers]),
        scores=None if scores is None else scores.reshape(passed.shape),
        log_probabilities=_grid(sampled, n, "log_probability"),
        lengths=_grid(sampled, n, "length"),
        log_prob_weight=weight,
        platt=platt,
        languages=tuple(language_of[problem] for problem in problems),
        sampling_seconds=stage_seconds(run.path(f"candidates/{policy}-{name}")),
        scoring_seconds=stage_seconds(scoring) if scoring else 0.0,
        greedy_lengths=np.array([c.length for c in answers]),
        greedy_seconds=stage_seconds(run.path(f"greedy/{policy}-{name}")),
        sandbox_errors=sum(c.verdict == Verdict.SANDBOX_ERROR for c in (*sampled, *answers)),
        caught=sum(c.verdict == Verdict.CHEATED for c in (*sampled, *answers)),
    )


def _grid(sampled: Sequence[Candidate], n: int, field: str) -> np.ndarray:
    """A field of candidates, which stand problem by problem, as an array [problems, n]."""
    return np.array([getattr(c, field) for c in sampled]).reshape(-1, n)
