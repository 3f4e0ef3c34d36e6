"""`report.html` of a comparison of rerankers: its tables and plots on one page that fetches nothing."""

from rerankjax.results import plots
from rerankjax.results.markup import figure, page, preformatted, section, table, text
from rerankjax.standalone.comparison import ORACLE, RERANKER, Comparison, Solved
from rerankjax.standalone.tables import tables

_CURVE = (
    "Expected fraction of problems solved when the best-scored of a random 1, 2, 4, … of the samples is the answer; "
    "bands are 95% intervals. The oracle knows the tests. At n = 1 all choose at random."
)
_RELIABILITY = (
    "A score becomes a probability by a sigmoid that is fitted on the other half of the problems (Platt scaling). A "
    "point is a tenth of the probabilities, its area its fraction of the samples, its bar a 95% interval. On the "
    "dotted line, predicted probability and pass rate are equal."
)


def report(comparison: Comparison, command: str) -> str:
    """The whole page. Names of models and subsets are escaped."""
    body = f"<header><h1>Rerankers compared</h1>{preformatted(text(command))}</header>\n"
    if comparison.problems:
        curve = plots.best_of_n(_curves(comparison), "Fraction of problems solved against the samples chosen from")
        body += section("Choosing among more samples", figure(curve, _CURVE))
        reliabilities = {
            name: (
                [b for b in comparison.reliabilities if b.reranker == name],
                comparison.measure(name, "expected_calibration_error"),
            )
            for name in comparison.rerankers
        }
        if comparison.reliabilities:
            title = "Reliability: pass rate against predicted probability, for each reranker"
            body += section(
                "Calibration of the scores", figure(plots.reliability_of(reliabilities, title), _RELIABILITY)
            )
    for tabulated in tables(comparison):
        rows = [[text(cell) for cell in row] for row in tabulated.rows]
        shown = table("facts", [text(name) for name in tabulated.header], rows)
        body += section(tabulated.title, f'{shown}<p class="note">{tabulated.note}</p>')
    return page("rerankjax: rerankers compared", body)


def _curves(comparison: Comparison) -> dict[str, dict[int, Solved]]:
    curves: dict[str, dict[int, Solved]] = {}
    for solved in comparison.solved:
        if solved.rule in (RERANKER, ORACLE):
            curves.setdefault(solved.reranker or solved.rule, {})[solved.n] = solved
    return {name: curves[name] for name in (*comparison.rerankers, ORACLE)}
