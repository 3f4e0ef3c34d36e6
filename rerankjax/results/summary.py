"""From evaluations to results: every rule of every arm, and the paired differences the claims ask for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from rerankjax.results import calibration, statistics
from rerankjax.results.claims import CLAIMS
from rerankjax.results.evaluation import ARMS, Evaluation
from rerankjax.results.results import Arm, Cost, Difference, Discrimination, Figure, Reliability, Results
from rerankjax.results.selection import RULES, answers, choice_probabilities, sample_counts, solved

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
    first = next(iter(by_arm.values()))
    n = first[0].passed.shape[1]
    languages = tuple(sorted(set(first[0].languages)))
    figures: list[Figure] = []
    discriminations: list[Discrimination] = []
    reliabilities: list[Reliability] = []
    costs: list[Cost] = []
    for arm, of_arm in by_arm.items():
        figures += _figures(arm, seeds, of_arm)
        discriminations += _discriminations(arm, seeds, of_arm)
        for language in languages if len(languages) > 1 else ():
            parts = [e.of_language(language) for e in of_arm]
            for rule in RULES:
                estimate = statistics.mean_estimate([solved(e, rule) for e in parts])
                figures.append(Figure(seed=None, arm=arm, rule=rule, n=n, language=language, **vars(estimate)))
            found = statistics.auc([e.passed for e in parts], [e.scores for e in parts])
            if found is not None:
                discriminations.append(
                    Discrimination(seed=None, arm=arm, measure="auc", language=language, **vars(found))
                )
        bins = calibration.reliability([e.passed for e in of_arm], [e.probabilities for e in of_arm])
        reliabilities += [Reliability(arm=arm, **vars(b)) for b in bins]
        costs += [_cost(arm, seed, group) for seed, group in _mean_and_each(seeds, of_arm)]
    return Results(
        config_digest=config_digest,
        seeds=seeds,
        problems=tuple(len(e.problems) for e in first),
        samples=n,
        languages=languages,
        arms=tuple(
            Arm(
                arm=arm,
                policy=es[0].policy,
                reranker=es[0].reranker,
                lam=tuple(float(e.lam) for e in es),
                slope=tuple(round(e.platt.slope, 6) for e in es),
                intercept=tuple(round(e.platt.intercept, 6) for e in es),
            )
            for arm, es in by_arm.items()
        ),
        figures=tuple(figures),
        differences=_differences(by_arm, seeds),
        discriminations=tuple(discriminations),
        reliabilities=tuple(reliabilities),
        costs=tuple(costs),
    )


def _figures(arm: str, seeds: Sequence[int], of_arm: Sequence[Evaluation]) -> Iterator[Figure]:
    n = of_arm[0].passed.shape[1]
    for rule in RULES:
        for m in sample_counts(n):
            values = [solved(e, rule, m) for e in of_arm]
            for seed, group in _mean_and_each(seeds, values):
                # A curve is drawn of the mean alone, so a seed's figures are kept at n only. m ends with n.
                if seed is None or m == n:
                    yield Figure(seed=seed, arm=arm, rule=rule, n=m, **vars(statistics.mean_estimate(group)))


def _discriminations(arm: str, seeds: Sequence[int], of_arm: Sequence[Evaluation]) -> Iterator[Discrimination]:
    for seed, group in _mean_and_each(seeds, of_arm):
        passed, scores = [e.passed for e in group], [e.scores for e in group]
        measured = {
            "auc": statistics.auc(passed, scores),
            "pairwise_accuracy": statistics.pairwise_accuracy(passed, scores),
            "expected_calibration_error": calibration.expected_calibration_error(
                passed, [e.probabilities for e in group]
            ),
        }
        for measure, found in measured.items():
            if found is not None:
                yield Discrimination(seed=seed, arm=arm, measure=measure, **vars(found))


def _differences(by_arm: Mapping[str, Sequence[Evaluation]], seeds: Sequence[int]) -> tuple[Difference, ...]:
    found = []
    for claim in CLAIMS:
        (arm, rule), (baseline_arm, baseline_rule) = claim.better, claim.baseline
        if arm not in by_arm or baseline_arm not in by_arm:
            continue
        pairs = list(zip(by_arm[arm], by_arm[baseline_arm], strict=True))
        for seed, group in _mean_and_each(seeds, pairs):
            estimate = statistics.mean_estimate([solved(a, rule) - solved(b, baseline_rule) for a, b in group])
            outcomes = [(answers(a, rule), answers(b, baseline_rule)) for a, b in group]
            alone = sum(int((a & ~b).sum()) for a, b in outcomes)
            baseline_alone = sum(int((b & ~a).sum()) for a, b in outcomes)
            problems = [name for a, _ in group for name in a.problems]
            separate = len(set(problems)) == len(problems)
            found.append(
                Difference(
                    seed=seed,
                    arm=arm,
                    rule=rule,
                    baseline_arm=baseline_arm,
                    baseline_rule=baseline_rule,
                    alone=alone,
                    baseline_alone=baseline_alone,
                    p_value=statistics.mcnemar(alone, baseline_alone) if separate else None,
                    **vars(estimate),
                )
            )
    return tuple(found)


def _cost(arm: str, seed: int | None, of_arm: Sequence[Evaluation]) -> Cost:
    def mean(values: Iterable[float]) -> float:
        return round(float(np.mean(list(values))), 6)

    def seconds(field: str) -> float | None:
        return mean(getattr(e, field) / len(e.problems) for e in of_arm) or None

    return Cost(
        seed=seed,
        arm=arm,
        tokens=mean(e.lengths.mean() for e in of_arm),
        chosen_tokens=mean((choice_probabilities(e.scores) * e.lengths).sum(1).mean() for e in of_arm),
        sampling_seconds=seconds("sampling_seconds"),
        scoring_seconds=seconds("scoring_seconds"),
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
        if (e.problems, e.languages) != (peer.problems, peer.languages):
            raise ValueError(f"{where}: other problems than arm {peer.arm!r}; differences need the same, in one order")
        if set(e.languages) != set(evaluations[0].languages):
            raise ValueError(
                f"{where}: the languages {', '.join(sorted(set(e.languages)))}, other evaluations have "
                f"{', '.join(sorted(set(evaluations[0].languages)))}; give every seed problems in each"
            )
        same = of_policy.setdefault((e.seed, e.policy), e)
        if same.programs != e.programs or not np.array_equal(same.passed, e.passed):
            raise ValueError(f"{where}: other samples of policy {e.policy!r} than arm {same.arm!r}; score the same")
    return {arm: [by_arm[arm][seed] for seed in seeds] for arm in ARMS if arm in by_arm}
