"""The report's tables of what was measured: pass@k, rerankers, languages and costs, as HTML."""

from rerankjax.results.evaluation import ARMS
from rerankjax.results.markup import table, text
from rerankjax.results.render import cost_rows, measure_texts, pass_at_k_rows, seconds_text
from rerankjax.results.results import MEASURES, Results
from rerankjax.results.selection import sample_counts
from rerankjax.results.statistics import Estimate, decimal

RELIABILITY = (
    "A score becomes a probability by a sigmoid that is fitted on the dev split (Platt scaling). Samples are put into "
    "ten bins by it; a point is a bin, its area the bin's share of the samples, its bar a 95% interval. On the dotted "
    "line the probability is what happens. The calibration error is the distance from the line, averaged over samples; "
    "chance alone keeps it above 0."
)
_RERANKERS = (
    "Pairwise accuracy compares samples of one problem only, which is what choosing needs. λ, the weight of the "
    "log-probability, was chosen on the dev split. If chosen samples are much longer or shorter than the rest, the "
    "reranker may go by length."
)
_COST = (
    "For one problem: all samples are drawn, executed and scored, one is chosen. Seconds are this run's on this "
    "machine, compilation and execution among them; arms that share a policy share its samples."
)
_LANGUAGES = "Share of problems that the reranker's choice solves, and below it the AUC, in each language."


def pass_at_k(results: Results) -> str:
    """One row a policy, one column a k."""
    header = ["samples of", *(f"pass@{k}" for k in sample_counts(results.samples))]
    rows = [[policy, *(cell(e) for e in estimates)] for policy, estimates in pass_at_k_rows(results)]
    return table("figures", header, rows)


def rerankers(results: Results) -> str:
    """One row an arm: how well its reranker tells, and whether it goes by length."""
    rows = []
    for arm in results.arms:
        cost = results.cost(arm.arm)
        lengths = f"{cost.tokens:.1f} → {cost.chosen_tokens:.1f}"
        lambdas = ", ".join(f"{lam:g}" for lam in arm.lam)
        rows.append([ARMS[arm.arm], *measure_texts(results, arm.arm), lambdas, lengths])
    header = ["samples, reranker", *MEASURES.values(), "λ by seed", "mean tokens, all → chosen"]
    return f'{table("figures", header, rows)}<p class="note">{_RERANKERS}</p>'


def languages(results: Results) -> str:
    """One row an arm, one column a language."""
    rows = []
    for arm in results.arms:
        cells = []
        for language in results.languages:
            auc = results.discrimination(arm.arm, "auc", language=language)
            said = f"AUC {decimal(auc.value)}" if auc else "AUC undefined"
            cells.append(f"{cell(results.figure(arm.arm, 'reranker', language=language))}<small>{said}</small>")
        rows.append([ARMS[arm.arm], *cells])
    header = ["samples, reranker", *map(text, results.languages)]
    return f'{table("figures", header, rows)}<p class="note">{_LANGUAGES}</p>'


def costs(results: Results) -> str:
    """One row an arm: what it solves, and what that takes."""
    rows = [
        [
            label,
            cell(solved),
            f"{cost.tokens * results.samples:,.0f}",
            seconds_text(cost.sampling_seconds),
            seconds_text(cost.scoring_seconds),
        ]
        for label, solved, cost in cost_rows(results)
    ]
    header = ["samples, reranker", "solved", "tokens drawn", "seconds: drawing, executing", "seconds: scoring"]
    return f'{table("figures", header, rows)}<p class="note">{_COST}</p>'


def cell(estimate: Estimate | None, bold: bool = False) -> str:
    """A value over its interval; ″ where the figure is that of the row above."""
    if estimate is None:
        return "″"
    value = f"<b>{decimal(estimate.value)}</b>" if bold else decimal(estimate.value)
    return f"{value}<small>{decimal(estimate.low)} to {decimal(estimate.high)}</small>"
