"""From evaluations to results: every rule of every arm, and the paired differences the claims ask for."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from rerankjax.table import statistics
from rerankjax.table.claims import CLAIMS
from rerankjax.table.evaluation import ARMS, Evaluation
from rerankjax.table.results import Arm, Difference, Discrimination, Figure, Results
from rerankjax.table.selection import RULES, sample_counts, solved

T = TypeVar("T")


def summarise(evaluations: Sequence[Evaluation], config_digest: str) -> Results:
    """All figures of a run: for every seed at n, and for the mean over seeds at 1, 2, 4, ... n samples.

    Args:
      evaluations: one for every seed and arm; every seed has the same arms, every arm of a seed the same problems.
      config_digest: says which config made them; written into the results.

    Raises:
      ValueError: evaluations are missing, doubled, or cannot be compared.
    """
    by_arm = _check(evaluations)
    seeds = tuple(sorted({e.seed for e in evaluations}))
    n = evaluations[0].passed.shape[1]
    first = next(iter(by_arm.values()))

    figures, differences, discriminations = [], [], []
    outcomes: dict[tuple[str, str], list[np.ndarray]] = {}
    for arm, of_arm in by_arm.items():
        for rule in RULES:
            for m in sample_counts(n):
                outcomes[arm, rule] = values = [solved(e, rule, m) for e in of_arm]
                for seed, group in _mean_and_each(seeds, values):
                    # A curve is drawn of the mean alone, so a seed's figures are kept at n only. m ends with n.
                    if seed is None or m == n:
                        estimate = statistics.mean_estimate(group)
                        figures.append(Figure(seed=seed, arm=arm, rule=rule, n=m, **vars(estimate)))
        for measure, measured in (("auc", statistics.auc), ("pairwise_accuracy", statistics.pairwise_accuracy)):
            for seed, evaluated in _mean_and_each(seeds, of_arm):
                found = measured([e.passed for e in evaluated], [e.scores for e in evaluated])
                if found is not None:
                    discriminations.append(Discrimination(seed=seed, arm=arm, measure=measure, **vars(found)))
    for claim in CLAIMS:
        if claim.better not in outcomes or claim.baseline not in outcomes:
            continue
        by_seed = [a - b for a, b in zip(outcomes[claim.better], outcomes[claim.baseline], strict=True)]
        for seed, group in _mean_and_each(seeds, by_seed):
            differences.append(
                Difference(
                    seed=seed,
                    arm=claim.better[0],
                    rule=claim.better[1],
                    baseline_arm=claim.baseline[0],
                    baseline_rule=claim.baseline[1],
                    **vars(statistics.mean_estimate(group)),
                )
            )
    return Results(
        config_digest=config_digest,
        seeds=seeds,
        problems=tuple(len(e.problems) for e in first),
        samples=n,
        arms=tuple(
            Arm(arm=arm, policy=es[0].policy, reranker=es[0].reranker, lam=tuple(float(e.lam) for e in es))
            for arm, es in by_arm.items()
        ),
        figures=tuple(figures),
        differences=tuple(differences),
        discriminations=tuple(discriminations),
    )


def _mean_and_each(seeds: Sequence[int], values: Sequence[T]) -> list[tuple[int | None, Sequence[T]]]:
    """All seeds' values under None, then each seed's alone."""
    return [(None, values), *((seed, [value]) for seed, value in zip(seeds, values, strict=True))]


def _check(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """The evaluations by arm, in the order of `ARMS` and then of seeds, if they can be compared with each other."""
    if not evaluations:
        raise ValueError("evaluations are empty; give one for every seed and arm")
    seeds = sorted({e.seed for e in evaluations})
    by_arm: dict[str, dict[int, Evaluation]] = {}
    for e in evaluations:
        if e.seed in by_arm.setdefault(e.arm, {}):
            raise ValueError(f"seed {e.seed} has two evaluations of arm {e.arm!r}; give one")
        by_arm[e.arm][e.seed] = e
    for arm, of_arm in by_arm.items():
        missing = [seed for seed in seeds if seed not in of_arm]
        if missing:
            raise ValueError(f"arm {arm!r} has no evaluation of seed {missing[0]}; run it for every seed, or for none")
    n = evaluations[0].passed.shape[1]
    of_policy: dict[tuple[int, str], Evaluation] = {}
    for e in evaluations:
        where = f"seed {e.seed}, arm {e.arm!r}"
        if e.passed.shape[1] != n:
            raise ValueError(f"{where}: {e.passed.shape[1]} samples a problem, others have {n}; draw equally many")
        peer = next(iter(by_arm.values()))[e.seed]
        if e.problems != peer.problems:
            raise ValueError(f"{where}: other problems than arm {peer.arm!r}; differences need the same, in one order")
        same = of_policy.setdefault((e.seed, e.policy), e)
        if same.programs != e.programs or not np.array_equal(same.passed, e.passed):
            raise ValueError(f"{where}: other samples of policy {e.policy!r} than arm {same.arm!r}; score the same")
    return {arm: [by_arm[arm][seed] for seed in seeds] for arm in ARMS if arm in by_arm}
