"""The report's tables of what was measured: pass@k, rerankers, languages and costs, as HTML."""

from rerankjax.results.markup import table, text
from rerankjax.results.render import (
    ABSENT,
    DIVERGENCE,
    DIVERGENCE_HEADER,
    FURTHER,
    SAME,
    UNJUDGED,
    UNJUDGED_HEADER,
    Cell,
    cost_rows,
    divergence_rows,
    execution_price,
    further_rows,
    language_rows,
    measure_texts,
    number_text,
    pass_at_k_rows,
    reranked,
    unjudged_rows,
)
from rerankjax.results.results import MEAN, MEASURES, Results
from rerankjax.results.selection import FURTHER_HEADS, sample_counts
from rerankjax.results.statistics import decimal

RELIABILITY = (
    "A sigmoid that is fitted on the dev split turns scores into probabilities (Platt scaling). Samples are grouped "
    "into ten bins by probability. Each point is a bin: its area is the bin's fraction of the samples, and its bar is "
    "a 95% interval. On the dotted line the pass rate equals the probability. The calibration error is the distance "
    "from the line, averaged over samples; sampling noise alone keeps it above 0."
)
_RERANKERS = (
    "Pairwise accuracy compares only samples of the same problem, as the choice does. λ, the weight of the "
    "log-probability, was chosen on the dev split. If chosen samples are much longer or shorter than the rest, the "
    "reranker may rely on length."
)
_COST = (
    "Per problem: all samples are drawn, executed and scored, and one is chosen. Seconds are this run's on this "
    "machine and include compilation and execution; systems that share a policy share its samples."
)
_LANGUAGES = (
    "Fraction of problems solved in each language by the greedy answer, by a random sample, and by the reranker's "
    "choice with its AUC below it. The mean is over the languages' fractions."
)


def pass_at_k(results: Results) -> str:
    """One row for each policy, one column for each k."""
    header = ["policy", *(f"pass@{k}" for k in sample_counts(results.samples))]
    rows = [[text(policy), *(cell(e) for e in estimates)] for policy, estimates in pass_at_k_rows(results)]
    return table("figures", header, rows)


def rerankers(results: Results) -> str:
    """One row for each system with a reranker: how well it discriminates, and whether it goes by length."""
    rows = []
    for system in reranked(results):
        cost = results.cost(system.system)
        lengths = f"{cost.tokens:.1f} → {cost.chosen_tokens:.1f}"
        weights = ", ".join(f"{weight:g}" for weight in system.log_prob_weight)
        rows.append([text(system.label), *measure_texts(results, system), weights, lengths])
    header = ["samples, reranker", *MEASURES.values(), "λ by seed", "mean tokens, all → chosen"]
    return f'{table("figures", header, rows)}<p class="note">{_RERANKERS}</p>'


def further_rules(results: Results) -> str:
    """One row for each system: what it solves by each of the rules that run programs, and what that costs."""
    rows = [[text(str(label)), *map(cell, cells)] for label, *cells in further_rows(results)]
    header = ["samples, reranker", *FURTHER_HEADS.values()]
    return f'{table("figures", header, rows)}<p class="note">{FURTHER} {execution_price(results)}</p>'


def divergences(results: Results) -> str:
    """One row for each system: its KL and what it solves there, by one sample and by its reranker's choice."""
    rows = [[text(str(label)), *map(cell, cells)] for label, *cells in divergence_rows(results)]
    return f'{table("figures", DIVERGENCE_HEADER, rows)}<p class="note">{DIVERGENCE}</p>'


def languages(results: Results) -> str:
    """One row for each answer, one column for each language and their mean."""
    rows = []
    for label, cells in language_rows(results):
        shown = [cell(figure) + (f"<small>AUC {decimal(auc.value)}</small>" if auc else "") for figure, auc in cells]
        rows.append([text(label), *shown])
    header = ["answer", *map(text, results.languages), MEAN]
    return f'{table("figures dense", header, rows)}<p class="note">{_LANGUAGES}</p>'


def costs(results: Results) -> str:
    """One row for each system: what it solves, and what that takes; then the programs that were not judged."""
    rows = [
        [
            text(label),
            cell(solved),
            f"{cost.tokens * results.samples:,.0f}",
            number_text(cost.sampling_seconds, ".3g"),
            ABSENT if solved == ABSENT else number_text(cost.scoring_seconds, ".3g"),
        ]
        for label, solved, cost in cost_rows(results)
    ]
    header = ["samples, reranker", "solved", "tokens drawn", "seconds: drawing, executing", "seconds: scoring"]
    page = f'{table("figures", header, rows)}<p class="note">{_COST}</p>'
    if unjudged := unjudged_rows(results):
        page += table("figures", UNJUDGED_HEADER, ([text(label), *counts] for label, *counts in unjudged))
        page += f'<p class="note">{UNJUDGED}</p>'
    return page


def cell(value: Cell, bold: bool = False) -> str:
    """A value over its interval; ″ if the figure is the same as in the row above."""
    if isinstance(value, str):
        return "″" if value == SAME else value
    number = f"<b>{decimal(value.value)}</b>" if bold else decimal(value.value)
    return f"{number}<small>{decimal(value.low)} to {decimal(value.high)}</small>"
