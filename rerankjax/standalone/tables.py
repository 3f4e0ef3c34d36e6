"""A comparison's tables, with the same cells for the terminal, Markdown and HTML."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rerankjax.results.render import pipes
from rerankjax.results.selection import sample_counts
from rerankjax.standalone.comparison import GREEDY, MAJORITY, MEASURES, ORACLE, RANDOM, RERANKER, Comparison

UNDEFINED = "undefined"
_PLAIN_WIDTH = 120


class Tabulated(NamedTuple):
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


def tables(comparison: Comparison) -> Iterator[Tabulated]:
    """One table for each kind of figure that the comparison has. Intervals are 95%, bootstrapped over problems."""
    if comparison.problems:
        yield _solved(comparison)
        yield _measures(comparison)
    if comparison.preferences:
        yield _preferred(comparison)
    if comparison.differences:
        yield _differences(comparison)
    yield _costs(comparison)


def _solved(comparison: Comparison) -> Tabulated:
    counts = sample_counts(comparison.samples_most)
    rows = []
    for rule in (RANDOM, MAJORITY, GREEDY):
        if solved := comparison.find(rule):
            rows.append([rule, *[""] * (len(counts) - 1), solved.text()])
    for rule, name in [*((RERANKER, name) for name in comparison.rerankers), (ORACLE, "")]:
        figures = [comparison.find(rule, name, n) for n in counts]
        rows.append([name or rule, *(figure.text() for figure in figures if figure)])
    least, most = comparison.samples_least, comparison.samples_most
    samples = f"{most}" if least == most else f"{least} to {most}"
    note = (
        f"Fraction of {comparison.problems} problems, with {samples} samples each, that the answer chosen from n "
        "samples solves. The oracle knows the tests."
    )
    return Tabulated("Problems solved", ["chosen by", *(f"n = {n}" for n in counts)], rows, note)


def _measures(comparison: Comparison) -> Tabulated:
    rows = []
    for name in comparison.rerankers:
        measures = [comparison.measure(name, measure) for measure in MEASURES]
        rows.append([name, *(measure.text() if measure else UNDEFINED for measure in measures)])
    note = (
        "AUC compares samples across problems, pairwise accuracy within a problem. The calibration error is that of a "
        "sigmoid of the score, fitted on the other half of the problems."
    )
    return Tabulated("Discrimination and calibration", ["reranker", *MEASURES.values()], rows, note)


def _preferred(comparison: Comparison) -> Tabulated:
    subsets = list(dict.fromkeys(p.subset for p in comparison.preferred))
    preferred = {(p.subset, p.reranker): p for p in comparison.preferred}
    rows = []
    for subset in subsets:
        of_subset = [preferred[subset, name] for name in comparison.rerankers]
        first = of_subset[0]
        rows.append([subset, str(first.rows), f"{first.candidates:g}", *(p.text() for p in of_subset)])
    note = "How often a right answer has the highest score of its row."
    return Tabulated("Preferences", ["subset", "rows", "answers", *comparison.rerankers], rows, note)


def _differences(comparison: Comparison) -> Tabulated:
    rows = [
        [d.reranker, d.baseline, d.kind, d.text("+"), f"{d.alone} : {d.baseline_alone}", f"{d.p_value:.2g}"]
        for d in comparison.differences
    ]
    note = (
        "Paired, on the same problems. alone: problems that only the reranker gets right, and only the baseline; "
        "p: McNemar's test."
    )
    return Tabulated("Differences", ["reranker", "baseline", "kind", "difference", "alone", "p"], rows, note)


def _costs(comparison: Comparison) -> Tabulated:
    rows = [
        [c.reranker, f"{c.candidates}", f"{c.seconds:.1f}", f"{1000 * c.seconds / max(c.candidates, 1):.3g}"]
        for c in comparison.costs
    ]
    note = "The seconds include compiling the model, but not loading it."
    return Tabulated("Cost", ["reranker", "candidates", "seconds", "ms per candidate"], rows, note)


def markdown(comparison: Comparison, level: int = 2) -> str:
    return "\n".join(f"{'#' * level} {t.title}\n\n{pipes(t.header, t.rows)}\n{t.note}\n" for t in tables(comparison))


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints the tables; without colours or a fixed width if the output is no terminal."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _PLAIN_WIDTH)
    for tabulated in tables(comparison):
        console.print(Text(f"\n{tabulated.title}", style="bold"))
        shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for place, name in enumerate(tabulated.header):
            shown.add_column(name, justify="right" if place else "left")
        for row in tabulated.rows:
            shown.add_row(*map(Text, row))
        console.print(shown)
        console.print(Text(tabulated.note, style="dim"))
