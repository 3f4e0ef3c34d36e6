"""The table and the claims for the terminal; with pass@k, languages and costs in Markdown."""

import re
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rerankjax.results.claims import judge, tally
from rerankjax.results.evaluation import ARMS
from rerankjax.results.results import MEASURES, Cost, Discrimination, Results
from rerankjax.results.selection import POLICY_RULES, RULE_HEADS, RULES, sample_counts
from rerankjax.results.statistics import Estimate, decimal

VERDICT_STYLES = {"shown": "green", "contradicted": "red", "not shown": "yellow", "not run": "dim"}
ALONE = (
    "Alone: problems that only the claim's first answer solves, and only its second; a random one is the first sample. "
    "p: McNemar's exact test of these counts, for all seeds together where none shares a problem with another."
)
# Wide enough for the table in a log or a pipe, which have no width of their own.
_PLAIN_WIDTH = 110


def table_rows(results: Results) -> list[tuple[str, list[Estimate | None], Discrimination | None]]:
    """One row an arm: its label, an estimate for every rule, its reranker's AUC.

    None stands for "as above", where an earlier arm has the same samples, and for an AUC that is undefined.
    """
    rows, seen = [], set()
    for arm in results.arms:
        cells: list[Estimate | None] = [
            None if arm.policy in seen and rule in POLICY_RULES else results.figure(arm.arm, rule) for rule in RULES
        ]
        rows.append((ARMS[arm.arm], cells, results.discrimination(arm.arm, "auc")))
        seen.add(arm.policy)
    return rows


def caption(results: Results) -> str:
    """What the table's figures are, in one sentence."""
    problems = " + ".join(str(p) for p in sorted(set(results.problems)))
    seeds = f"mean of {len(results.seeds)} seeds" if len(results.seeds) > 1 else f"seed {results.seeds[0]}"
    return (
        f"Share of held-out problems solved by the sample that each rule chooses, {results.samples} samples a problem, "
        f"{problems} problems, {seeds}, with 95% bootstrap intervals over problems."
    )


def print_results(results: Results, console: Console | None = None) -> None:
    """Prints the table and what the run says of each claim; without colours or a fixed width where not a terminal."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _PLAIN_WIDTH)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("arm", min_width=15)
    for name in RULES.values():
        table.add_column(name, justify="right", min_width=9, max_width=9)
    table.add_column("AUC", justify="right", min_width=4, no_wrap=True)
    for label, cells, auc in table_rows(results):
        # Interval below its value, none for the AUC: a row fits into 80 columns.
        table.add_row(label, *(_cell(cell) for cell in cells), decimal(auc.value) if auc else "")
    console.print(table)
    console.print(caption(results), style="dim", highlight=False)
    console.print()
    findings = judge(results)
    console.print(Text(f"Claims: {tally(findings)}", style="bold"))
    lines = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in ("verdict", "claim", "difference", "seeds", "p"):
        lines.add_column(name)
    for finding in findings:
        if finding.verdict != "not run":
            verdict = Text(finding.verdict, style=VERDICT_STYLES[finding.verdict])
            figures = Text(finding.interval()), finding.seeds_above(), finding.p_value()
            lines.add_row(verdict, finding.claim.title, *figures)
    console.print(lines)
    console.print("seeds: with a difference above 0; p: McNemar's exact test.", style="dim", highlight=False)


def _cell(cell: Estimate | None) -> Text:
    if cell is None:
        return Text('"', style="dim")
    interval = f"{decimal(cell.low)}-{decimal(cell.high)}"
    return Text.assemble((decimal(cell.value), "bold"), (f"\n{interval}", "dim"))


def pass_at_k_rows(results: Results) -> list[tuple[str, list[Estimate]]]:
    """One row a policy: its label, and pass@k for the k of `sample_counts`."""
    counts = sample_counts(results.samples)
    first = {arm.policy: arm.arm for arm in reversed(results.arms)}
    return [
        (re.sub(", reranker [0-9]", "", ARMS[arm]), [results.figure(arm, "oracle", k) for k in counts])
        for arm in reversed(first.values())
    ]


def cost_rows(results: Results) -> list[tuple[str, Estimate, Cost]]:
    """One row an arm: its label, the share that its reranker solves, and what that costs."""
    return [(ARMS[a.arm], results.figure(a.arm, "reranker"), results.cost(a.arm)) for a in results.arms]


def seconds_text(value: float | None) -> str:
    """Three digits that matter, or `not measured`."""
    return "not measured" if value is None else f"{value:.3g}"


def markdown(results: Results) -> str:
    """The table as Markdown with its caption below, then pass@k, languages if several, costs and claims."""
    rows = []
    for label, cells, auc in table_rows(results):
        shown = ('"' if cell is None else cell.text() for cell in cells)
        rows.append([label, *shown, auc.text() if auc else "undefined"])
    page = pipes(["arm", *RULE_HEADS.values(), "AUC"], rows)
    page += f'\n{caption(results)} `"`: the same samples as the row above.\n'

    page += "\n## pass@k\n\n" + pipes(
        ["policy", *(f"k = {k}" for k in sample_counts(results.samples))],
        [[policy, *(e.text() for e in estimates)] for policy, estimates in pass_at_k_rows(results)],
    )
    if len(results.languages) > 1:
        page += "\n## By language\n\n" + pipes(
            ["arm", *results.languages], [[ARMS[a.arm], *_languages(results, a.arm)] for a in results.arms]
        )
        page += "\nShare solved by the reranker's choice, with its interval; AUC behind it.\n"
    page += "\n## Rerankers\n\n" + pipes(
        ["arm", *MEASURES.values()],
        [[ARMS[a.arm], *measure_texts(results, a.arm)] for a in results.arms],
    )
    page += "\n## Quality and cost\n\n" + pipes(
        ["arm", "solved", "tokens a problem", "of the chosen", "s a problem, drawn and executed", "scored"],
        [
            [
                label,
                solved.text(),
                f"{cost.tokens * results.samples:.0f}",
                f"{cost.chosen_tokens:.0f}",
                seconds_text(cost.sampling_seconds),
                seconds_text(cost.scoring_seconds),
            ]
            for label, solved, cost in cost_rows(results)
        ],
    )
    page += "\n## Claims\n\n" + pipes(
        ["claim", "this run says", "difference", "seeds > 0", "alone", "p"],
        [
            [f.claim.title, f.verdict, f.interval(), f.seeds_above(), f.alone(), f.p_value()]
            for f in judge(results)
            if f.verdict != "not run"
        ],
    )
    return f"{page}\n{ALONE}\n"


def measure_texts(results: Results, arm: str) -> list[str]:
    """An arm's AUC, pairwise accuracy and calibration error, `undefined` where all its samples passed, or none."""
    found = [results.discrimination(arm, measure) for measure in MEASURES]
    return [f.text() if f else "undefined" for f in found]


def _languages(results: Results, arm: str) -> list[str]:
    shown = []
    for language in results.languages:
        auc = results.discrimination(arm, "auc", language=language)
        said = f"{decimal(auc.value)}" if auc else "undefined"
        shown.append(f"{results.figure(arm, 'reranker', language=language).text()}, {said}")
    return shown


def pipes(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left; ends with a newline."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
