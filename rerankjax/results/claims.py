"""The paper's claims and its open questions as paired differences, and what a run says about each."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from rerankjax.results.results import Difference, Results
from rerankjax.results.selection import ALL_RULES
from rerankjax.results.statistics import decimal

Verdict = Literal["shown", "contradicted", "not shown", "not run"]


@dataclass(frozen=True)
class Claim:
    """The (system, rule) `better` solves more problems than the (system, rule) `baseline`.

    `paper` has the source's figures where it gives them (MultiPL-E, mean of eight languages, 6.7B + 6.7B).
    """

    title: str
    sentence: str
    better: tuple[str, str]
    baseline: tuple[str, str]
    paper: str = ""


_ONE_ITERATION = (
    Claim(
        "Reranking",
        "Letting the reranker choose one of the SFT model's samples solves more problems than taking one at random.",
        ("sft", "reranker"),
        ("sft", "random"),
    ),
    Claim(
        "PPO",
        "One sample of the PPO policy, trained against the reranker, passes more often than one of the SFT model.",
        ("ppo", "random"),
        ("sft", "random"),
    ),
    Claim(
        "PPO with reranking",
        "The same reranker solves more problems choosing among PPO samples than choosing among SFT samples.",
        ("ppo", "reranker"),
        ("sft", "reranker"),
    ),
    Claim(
        "Reranking PPO samples",
        "Letting the reranker that PPO trained against choose one of PPO's samples solves more problems than taking "
        "one at random.",
        ("ppo", "reranker"),
        ("ppo", "random"),
    ),
    Claim(
        "Retraining on random negatives",
        "On the same PPO samples, a reranker retrained on new failing samples, drawn at random, chooses better than "
        "the one PPO trained against.",
        ("random", "reranker"),
        ("ppo", "reranker"),
    ),
    Claim(
        "Retraining on hard negatives",
        "On the same PPO samples, a reranker retrained on its hard negatives, the failing samples it scored highest, "
        "chooses better than the one PPO trained against.",
        ("hard", "reranker"),
        ("ppo", "reranker"),
    ),
    Claim(
        "Retraining by self-training",
        "On the same PPO samples, a reranker retrained on its hard negatives and new passing samples chooses better "
        "than the one PPO trained against.",
        ("self_training", "reranker"),
        ("ppo", "reranker"),
    ),
)

_WHAT_TO_RETRAIN_ON = (
    Claim(
        "Hard negatives against the same data",
        "Retraining the reranker on its hard negatives helps more than training it as long on its previous pairs.",
        ("hard", "reranker"),
        ("same_data", "reranker"),
    ),
    Claim(
        "Self-training against the same data",
        "Retraining the reranker on hard negatives and new passing samples helps more than training it as long on its "
        "previous pairs.",
        ("self_training", "reranker"),
        ("same_data", "reranker"),
    ),
    Claim(
        "Hard against random negatives",
        "New failing samples that the reranker scored highest improve it more than new ones drawn at random.",
        ("hard", "reranker"),
        ("random", "reranker"),
    ),
    Claim(
        "Self-training against hard negatives",
        "Hard negatives together with new passing samples help more than hard negatives alone.",
        ("self_training", "reranker"),
        ("hard", "reranker"),
    ),
)

_TWO_ITERATIONS = (
    Claim(
        "Second iteration, hard negatives",
        "Retraining the reranker on hard negatives, then PPO again from the SFT model, solves more than one iteration.",
        ("hard+ppo", "reranker"),
        ("ppo", "reranker"),
        paper="69.7% against 69.9%",
    ),
    Claim(
        "Second iteration, self-training",
        "Retraining the reranker on hard negatives and new passing samples, then PPO again from the SFT model, solves "
        "more than one iteration.",
        ("self_training+ppo", "reranker"),
        ("ppo", "reranker"),
        paper="70.9% against 69.9%",
    ),
    *(
        replace(
            claim,
            title=f"{claim.title}, after PPO",
            sentence=f"After another PPO from the SFT model: {claim.sentence[0].lower()}{claim.sentence[1:]}",
            better=(f"{claim.better[0]}+ppo", claim.better[1]),
            baseline=(f"{claim.baseline[0]}+ppo", claim.baseline[1]),
            paper="70.9% against 69.7%" if claim.baseline[0] == "hard" else "",
        )
        for claim in _WHAT_TO_RETRAIN_ON
    ),
)

_SECOND_PPO = tuple(
    claim
    for iteration, name in (("hard", "hard negatives"), ("self_training", "self-training"))
    for claim in (
        Claim(
            f"Second policy, {name}",
            f"One sample of the second PPO policy, trained against the reranker retrained by {name}, passes more often "
            "than one of the first.",
            (f"{iteration}+ppo", "random"),
            ("ppo", "random"),
        ),
        Claim(
            f"Reranking the second policy, {name}",
            f"Letting the reranker retrained by {name} choose one of the second PPO policy's samples solves more "
            "problems than taking one at random.",
            (f"{iteration}+ppo", "reranker"),
            (f"{iteration}+ppo", "random"),
        ),
        Claim(
            f"Second iteration with log-probability, {name}",
            f"Choosing by reranker + lambda * log-probability solves more after the second iteration, by {name}, than "
            "after the first.",
            (f"{iteration}+ppo", "reranker+log_probability"),
            ("ppo", "reranker+log_probability"),
        ),
    )
)

_RERANKED = {
    "ppo": ("PPO", "one of the PPO policy's samples by the reranker that it trained against"),
    "hard": ("Hard negatives", "one of the PPO policy's samples by the reranker retrained on hard negatives"),
    "self_training": ("Self-training", "one of the PPO policy's samples by the reranker retrained by self-training"),
    "hard+ppo": ("Second iteration, hard negatives", "one of the second PPO policy's samples by its reranker"),
    "self_training+ppo": ("Second iteration, self-training", "one of the second PPO policy's samples by its reranker"),
}

_AGAINST_GREEDY = (
    Claim(
        "Reranking against greedy",
        "Letting the reranker choose one of the SFT model's samples solves more problems than its greedy answer.",
        ("sft", "reranker"),
        ("sft", "greedy"),
    ),
    *(
        claim
        for system, (name, choice) in _RERANKED.items()
        for claim in (
            Claim(
                f"{name} against SFT greedy",
                f"Choosing {choice} solves more problems than the SFT model's greedy answer.",
                (system, "reranker"),
                ("sft", "greedy"),
            ),
            Claim(
                f"{name} against its own greedy",
                f"Choosing {choice} solves more problems than that policy's greedy answer.",
                (system, "reranker"),
                (system, "greedy"),
            ),
        )
    ),
    *(
        Claim(
            f"{_RERANKED[system][0]} against the base model",
            f"Choosing {_RERANKED[system][1]} solves more problems than the greedy answer of the checkpoint before any "
            "training.",
            (system, "reranker"),
            ("base", "greedy"),
            paper=f"{percent}% against 66.1%",
        )
        for system, percent in {"ppo": 69.9, "hard+ppo": 69.7, "self_training+ppo": 70.9}.items()
    ),
)

CLAIMS: tuple[Claim, ...] = _ONE_ITERATION + _WHAT_TO_RETRAIN_ON + _TWO_ITERATIONS + _SECOND_PPO + _AGAINST_GREEDY


@dataclass(frozen=True)
class Finding:
    """What a run says about a claim: the 95% interval of the paired difference lies above 0, below 0, or contains 0.

    `by_seed` has each seed's own difference, because intervals over problems say nothing about other training runs.
    """

    claim: Claim
    verdict: Verdict
    difference: Difference | None
    by_seed: tuple[float, ...]

    def interval(self) -> str:
        """`+.104 [+.071, +.137]`, or nothing where the claim was not run."""
        return self.difference.text("+") if self.difference else ""

    def p_value(self) -> str:
        """`.005`, `<.001`, or nothing where there is none."""
        p = self.difference.p_value if self.difference else None
        return "" if p is None else "<.001" if p < 0.001 else decimal(p)

    def alone(self) -> str:
        """`31 : 12`: problems that only the claim's first answer solves, and those that only its second solves."""
        return f"{self.difference.alone} : {self.difference.baseline_alone}" if self.difference else ""

    def seeds_above(self) -> str:
        """`2 of 3`: in how many seeds the difference itself is above 0."""
        return f"{sum(value > 0 for value in self.by_seed)} of {len(self.by_seed)}"


def findings_of(results: Results) -> tuple[Finding, ...]:
    """One finding for every claim of `CLAIMS`, in order; "not run" where the evaluation set lacks a system."""
    return tuple(_find(claim, results) for claim in CLAIMS)


def best_finding(results: Results) -> Finding | None:
    """The best (system, rule) on the dev split against the paper's answer; None if either is missing."""
    if results.best_answer is None or results.paper_answer is None:
        return None
    labels = {s.system: s.label for s in results.systems}
    (better, rule), (baseline, _) = results.best_answer, results.paper_answer
    title = f"{labels[better]}, {ALL_RULES[rule]}"
    sentence = f"The answer that solves most dev problems, against the paper's: {labels[baseline]}, reranker alone."
    return _find(Claim(title, sentence, results.best_answer, results.paper_answer), results)


def second_iteration(results: Results) -> dict[str, Finding]:
    """The second iteration's reranker alone, chosen on the dev split, against what `comparisons_of` names."""
    system = results.second_iteration
    return {
        name: _find(Claim(name, f"The second iteration's reranker alone against {name}.", better, baseline), results)
        for name, better, baseline in comparisons_of(system)
    }


def comparisons_of(system: str | None) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """(name, answer, baseline) of the comparisons of `second_iteration`; none without a system."""
    if system is None:
        return []
    return [
        ("one sample of its policy", (system, "reranker"), (system, "random")),
        ("the first iteration", (system, "reranker"), ("ppo", "reranker")),
        ("its policy's greedy answer", (system, "reranker"), (system, "greedy")),
    ]


def _find(claim: Claim, results: Results) -> Finding:
    of_claim = [
        d
        for d in results.differences
        if ((d.system, d.rule), (d.baseline_system, d.baseline_rule)) == (claim.better, claim.baseline)
    ]
    by_seed = tuple(d.value for d in of_claim if d.seed is not None)
    pooled = [d for d in of_claim if d.seed is None]
    if not pooled:
        return Finding(claim, "not run", None, by_seed)
    d = pooled[0]
    verdict: Verdict = "shown" if d.low > 0 else "contradicted" if d.high < 0 else "not shown"
    return Finding(claim, verdict, d, by_seed)


def tally(findings: tuple[Finding, ...]) -> str:
    """`7 of 10 shown, 1 contradicted, 2 not shown; 4 not run`, or `none was run`."""
    count = Counter(finding.verdict for finding in findings)
    run = len(findings) - count["not run"]
    if not run:
        return "none was run"
    text = f"{count['shown']} of {run} shown, {count['contradicted']} contradicted, {count['not shown']} not shown"
    return f"{text}; {count['not run']} not run" if count["not run"] else text
