"""The table and the claims for the terminal, and the same table in Markdown."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rerankjax.table.claims import judge, tally
from rerankjax.table.evaluation import ARMS
from rerankjax.table.results import Discrimination, Results
from rerankjax.table.selection import POLICY_RULES, RULES
from rerankjax.table.statistics import Estimate, decimal

VERDICT_STYLES = {"shown": "green", "contradicted": "red", "not shown": "yellow", "not run": "dim"}
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
    lines = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("verdict", "claim", "difference", "seeds > 0"):
        lines.add_column(name)
    for finding in findings:
        if finding.verdict != "not run":
            verdict = Text(finding.verdict, style=VERDICT_STYLES[finding.verdict])
            lines.add_row(verdict, finding.claim.title, Text(finding.interval()), finding.seeds_above())
    console.print(lines)


def _cell(cell: Estimate | None) -> Text:
    if cell is None:
        return Text('"', style="dim")
    interval = f"{decimal(cell.low)}-{decimal(cell.high)}"
    return Text.assemble((decimal(cell.value), "bold"), (f"\n{interval}", "dim"))


def markdown(results: Results) -> str:
    """The table as Markdown, with its caption below; ends with a newline."""
    header = ["arm", *(name.replace("lambda", "λ") for name in RULES.values()), "AUC"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for label, cells, auc in table_rows(results):
        shown = ('"' if cell is None else cell.text() for cell in cells)
        lines.append([label, *shown, auc.text() if auc else "undefined"])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f'{table}\n\n{caption(results)} `"`: the same samples as the row above.\n'
