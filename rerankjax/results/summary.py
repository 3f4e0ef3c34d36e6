"""From evaluations to results: every rule of every system, and the paired differences the claims ask for."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from rerankjax.results import calibration, statistics
from rerankjax.results.claims import CLAIMS, comparisons_of
from rerankjax.results.divergence import divergence
from rerankjax.results.evaluation import Evaluation
from rerankjax.results.results import (
    MEAN,
    Cost,
    DevFigure,
    Difference,
    Discrimination,
    Divergence,
    Figure,
    Reliability,
    Results,
    System,
)
from rerankjax.results.selection import answers, choice_probabilities, rules_of, sample_counts, solved
from rerankjax.results.translations import mean_over_languages

T = TypeVar("T")
_OF_SYSTEM = ("label", "policy", "policy_label", "reranker")  # identical for every seed


def summarise(evaluations: Sequence[Evaluation], config_digest: str) -> tuple[Results, ...]:
    """The results of a run: one for each evaluation set; sets and systems are in the order of their evaluations.

    Args:
      evaluations: one for every seed, set and system. Every seed has the same sets and systems, every system of a seed
        and set the same problems; sets may differ in problems, languages, systems and samples per problem.
      config_digest: identifies the config that made them; it is written into the results.

    Raises:
      ValueError: evaluations are missing or duplicated, or cannot be compared.
    """
    if not evaluations:
        raise ValueError("evaluations is empty; give one for every seed, set and system")
    seeds = tuple(sorted({e.seed for e in evaluations}))
    by_set: dict[str, list[Evaluation]] = {}
    for e in evaluations:
        by_set.setdefault(e.evaluation_set, []).append(e)
    return tuple(_summarise_set(_by_system(of_set, seeds), seeds, config_digest) for of_set in by_set.values())


def _summarise_set(
    by_system: Mapping[str, Sequence[Evaluation]], seeds: tuple[int, ...], config_digest: str
) -> Results:
    """One set's results: for every seed at n, and for the mean over seeds at 1, 2, 4, ... n samples."""
    first = next(iter(by_system.values()))
    languages = tuple(sorted(set(first[0].languages)))
    figures: list[Figure] = []
    discriminations: list[Discrimination] = []
    reliabilities: list[Reliability] = []
    for system, of_system in by_system.items():
        figures += _figures(system, seeds, of_system)
        if len(languages) > 1:
            figures += _figures_by_language(system, languages, of_system)
        if of_system[0].reranker:
            discriminations += _discriminations(system, seeds, of_system)
            if len(languages) > 1:
                discriminations += _auc_by_language(system, languages, of_system)
            bins = calibration.reliability([e.passed for e in of_system], [e.probabilities for e in of_system])
            reliabilities += [Reliability(system=system, **vars(b)) for b in bins]
    results = Results(
        config_digest=config_digest,
        seeds=seeds,
        evaluation_set=first[0].evaluation_set,
        problems=tuple(len(e.problems) for e in first),
        samples=first[0].passed.shape[1],
        languages=languages,
        systems=tuple(_system(es) for es in by_system.values()),
        figures=tuple(figures),
        differences=(),
        discriminations=tuple(discriminations),
        reliabilities=tuple(reliabilities),
        costs=tuple(
            _cost(system, seed, group)
            for system, of_system in by_system.items()
            for seed, group in _mean_and_each(seeds, of_system)
        ),
        dev=tuple(_dev_figures(by_system)),
        divergences=tuple(_divergences(by_system, seeds)),
    )
    pairs = [(claim.better, claim.baseline) for claim in CLAIMS]
    if results.best_answer and results.paper_answer and results.best_answer != results.paper_answer:
        pairs.append((results.best_answer, results.paper_answer))
    pairs += [(better, baseline) for _, better, baseline in comparisons_of(results.second_iteration)]
    return dataclasses.replace(results, differences=_differences(by_system, seeds, dict.fromkeys(pairs)))


def _dev_figures(by_system: Mapping[str, Sequence[Evaluation]]) -> Iterator[DevFigure]:
    for system, of_system in by_system.items():
        for rule in of_system[0].dev:
            value = float(np.mean([e.dev[rule] for e in of_system]))
            yield DevFigure(system=system, rule=rule, value=round(value, 6))


def _divergences(by_system: Mapping[str, Sequence[Evaluation]], seeds: Sequence[int]) -> Iterator[Divergence]:
    for system, of_system in by_system.items():
        if not all(e.likelihood for e in of_system):
            continue
        for rule in ("random", "reranker") if of_system[0].reranker else ("random",):
            for seed, group in _mean_and_each(seeds, [divergence(e, rule) for e in of_system]):
                yield Divergence(seed=seed, system=system, rule=rule, **vars(statistics.mean_estimate(group)))


def _system(of_system: Sequence[Evaluation]) -> System:
    first = of_system[0]
    fits = [e.platt for e in of_system if e.platt]
    return System(
        system=first.system,
        label=first.label,
        policy=first.policy,
        policy_label=first.policy_label,
        reranker=first.reranker,
        log_prob_weight=tuple(float(e.log_prob_weight) for e in of_system if e.reranker),
        slope=tuple(round(platt.slope, 6) for platt in fits),
        intercept=tuple(round(platt.intercept, 6) for platt in fits),
        sandbox_errors=tuple(e.sandbox_errors for e in of_system),
        caught=tuple(e.caught for e in of_system),
        with_inputs=tuple(e.executed.covered for e in of_system if e.executed),
    )


def _figures(system: str, seeds: Sequence[int], of_system: Sequence[Evaluation]) -> Iterator[Figure]:
    n = of_system[0].passed.shape[1]
    for rule in rules_of(of_system[0]):
        for m in sample_counts(n):
            values = [solved(e, rule, m) for e in of_system]
            for seed, group in _mean_and_each(seeds, values):
                # Curves show only the mean over seeds, so a seed's figures are kept at n only. The last m is n.
                if seed is None or m == n:
                    yield Figure(seed=seed, system=system, rule=rule, n=m, **vars(statistics.mean_estimate(group)))


def _figures_by_language(system: str, languages: Sequence[str], of_system: Sequence[Evaluation]) -> Iterator[Figure]:
    n, rules = of_system[0].passed.shape[1], rules_of(of_system[0])
    for language in languages:
        parts = [e.of_language(language) for e in of_system]
        for rule in rules:
            estimate = statistics.mean_estimate([solved(e, rule) for e in parts])
            yield Figure(seed=None, system=system, rule=rule, n=n, language=language, **vars(estimate))
    for rule in rules:
        estimate = mean_over_languages(of_system, rule)
        yield Figure(seed=None, system=system, rule=rule, n=n, language=MEAN, **vars(estimate))


def _discriminations(system: str, seeds: Sequence[int], of_system: Sequence[Evaluation]) -> Iterator[Discrimination]:
    for seed, group in _mean_and_each(seeds, of_system):
        passed, scores = [e.passed for e in group], [e.reranker_scores for e in group]
        measured = {
            "auc": statistics.auc(passed, scores),
            "pairwise_accuracy": statistics.pairwise_accuracy(passed, scores),
            "expected_calibration_error": calibration.expected_calibration_error(
                passed, [e.probabilities for e in group]
            ),
        }
        for measure, estimate in measured.items():
            if estimate is not None:
                yield Discrimination(seed=seed, system=system, measure=measure, **vars(estimate))


def _auc_by_language(
    system: str, languages: Sequence[str], of_system: Sequence[Evaluation]
) -> Iterator[Discrimination]:
    for language in languages:
        parts = [e.of_language(language) for e in of_system]
        estimate = statistics.auc([e.passed for e in parts], [e.reranker_scores for e in parts])
        if estimate is not None:
            yield Discrimination(seed=None, system=system, measure="auc", language=language, **vars(estimate))


def _differences(
    by_system: Mapping[str, Sequence[Evaluation]],
    seeds: Sequence[int],
    wanted: Iterable[tuple[tuple[str, str], tuple[str, str]]],
) -> tuple[Difference, ...]:
    """The differences of those wanted pairs of (system, rule) that the evaluations have."""
    differences = []
    for pair in wanted:
        (system, rule), (baseline_system, baseline_rule) = pair
        if not all(name in by_system and of_name in rules_of(by_system[name][0]) for name, of_name in pair):
            continue
        pairs = list(zip(by_system[system], by_system[baseline_system], strict=True))
        for seed, group in _mean_and_each(seeds, pairs):
            estimate = statistics.mean_estimate([solved(a, rule) - solved(b, baseline_rule) for a, b in group])
            outcomes = [(answers(a, rule), answers(b, baseline_rule)) for a, b in group]
            alone = sum(int((a & ~b).sum()) for a, b in outcomes)
            baseline_alone = sum(int((b & ~a).sum()) for a, b in outcomes)
            problems = [key for a, _ in group for key in a.keys]
            separate = len(set(problems)) == len(problems)
            differences.append(
                Difference(
                    seed=seed,
                    system=system,
                    rule=rule,
                    baseline_system=baseline_system,
                    baseline_rule=baseline_rule,
                    alone=alone,
                    baseline_alone=baseline_alone,
                    p_value=statistics.mcnemar(alone, baseline_alone) if separate else None,
                    **vars(estimate),
                )
            )
    return tuple(differences)


def _cost(system: str, seed: int | None, of_system: Sequence[Evaluation]) -> Cost:
    def mean(values: Iterable[float]) -> float:
        return round(float(np.mean(list(values))), 6)

    def seconds(field: str) -> float | None:
        return mean(getattr(e, field) / len(e.problems) for e in of_system) or None

    ran = [e.executed for e in of_system if e.executed]
    problems = sum(len(e.problems) for e in of_system)
    chosen = [(choice_probabilities(e.scores) * e.lengths).sum(1).mean() for e in of_system if e.scores is not None]
    greedy = [e.greedy_lengths.mean() for e in of_system if e.greedy_lengths is not None]
    return Cost(
        seed=seed,
        system=system,
        tokens=mean(e.lengths.mean() for e in of_system),
        chosen_tokens=mean(chosen) if chosen else None,
        greedy_tokens=mean(greedy) if len(greedy) == len(of_system) else None,
        sampling_seconds=seconds("sampling_seconds"),
        scoring_seconds=seconds("scoring_seconds"),
        greedy_seconds=seconds("greedy_seconds"),
        output_runs=mean([sum(x.runs for x in ran) / problems]) if ran else None,
        output_seconds=mean([sum(x.seconds for x in ran) / problems]) if ran else None,
    )


def _mean_and_each(seeds: Sequence[int], values: Sequence[T]) -> list[tuple[int | None, Sequence[T]]]:
    """All seeds' values under None, then each seed's alone."""
    return [(None, values), *((seed, [value]) for seed, value in zip(seeds, values, strict=True))]


def _by_system(evaluations: Sequence[Evaluation], seeds: Sequence[int]) -> dict[str, list[Evaluation]]:
    """One set's evaluations by system, in the order of seeds. Raises ValueError unless they can be compared."""
    by_system: dict[str, dict[int, Evaluation]] = {}
    for e in evaluations:
        if e.seed in by_system.setdefault(e.system, {}):
            raise ValueError(f"{_place(e)}: there are two evaluations; give only one")
        by_system[e.system][e.seed] = e
    first = next(iter(by_system.values()))
    for system, of_system in by_system.items():
        missing = [seed for seed in seeds if seed not in of_system]
        if missing:
            raise ValueError(
                f"set {evaluations[0].evaluation_set!r}, system {system!r} has no evaluation of seed {missing[0]}; "
                "evaluate it for every seed, or for none"
            )
    of_policy: dict[tuple[int, str], Evaluation] = {}
    for e in evaluations:
        _check_peers(e, evaluations[0], first[e.seed], next(iter(by_system[e.system].values())))
        same = of_policy.setdefault((e.seed, e.policy), e)
        samples = zip((e.passed, e.greedy), (same.passed, same.greedy), strict=True)
        if e.programs != same.programs or not all(np.array_equal(a, b) for a, b in samples):
            raise ValueError(
                f"{_place(e)}: its samples of policy {e.policy!r} differ from those of system {same.system!r}"
            )
    return {system: [of_system[seed] for seed in seeds] for system, of_system in by_system.items()}


def _check_peers(e: Evaluation, of_set: Evaluation, of_seed: Evaluation, of_system: Evaluation) -> None:
    """Raises ValueError unless `e` matches the others: one of its set, one of its set and seed, one of its system."""
    n = of_set.passed.shape[1]
    if e.passed.shape[1] != n:
        raise ValueError(f"{_place(e)}: {e.passed.shape[1]} samples per problem, but others have {n}; draw {n}")
    if e.keys != of_seed.keys:
        raise ValueError(
            f"{_place(e)}: its problems differ from those of system {of_seed.system!r}; give the same problems in the "
            "same order"
        )
    if set(e.languages) != set(of_set.languages):
        raise ValueError(
            f"{_place(e)}: its languages are {', '.join(sorted(set(e.languages)))}, but those of other evaluations are "
            f"{', '.join(sorted(set(of_set.languages)))}; give every seed problems in the same languages"
        )
    for field in _OF_SYSTEM:
        if getattr(e, field) != getattr(of_system, field):
            raise ValueError(
                f"{_place(e)}: {field} is {getattr(e, field)!r}, but {getattr(of_system, field)!r} in seed "
                f"{of_system.seed}; give the same for all seeds"
            )


def _place(e: Evaluation) -> str:
    return f"set {e.evaluation_set!r}, seed {e.seed}, system {e.system!r}"
