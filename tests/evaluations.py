"""Made-up evaluations for the tests of results."""

import re

import numpy as np

from rerankjax.results import calibration
from rerankjax.results.evaluation import Evaluation

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
        policy_label=re.sub(", reranker [12]", "", LABELS[system]),
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


ONE_ITERATION = ("sft", "ppo", "same_data", "random", "hard", "self_training")
GAIN = {"sft": 2.0, "ppo": 0.0, "hard": 2.0, "self_training": 2.0}


def one_iteration() -> list[Evaluation]:
    return [evaluation(s, system, gain=GAIN.get(system, 0.5)) for s in (0, 1) for system in ONE_ITERATION]
