"""A run's tables and claims, for the terminal and, with pass@k, languages and costs, in Markdown."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rerankjax.results.claims import Finding, best_finding, findings_of, second_iteration, tally
from rerankjax.results.results import MEAN, MEASURES, Cost, Discrimination, Figure, Results, System
from rerankjax.results.selection import FURTHER_HEADS, FURTHER_RULES, POLICY_RULES, RULE_HEADS, RULES, sample_counts
from rerankjax.results.statistics import Estimate, decimal

Cell = Estimate | str
SAME, ABSENT, UNDEFINED = '"', "–", "undefined"  # noqa: RUF001
VERDICT_STYLES = {"shown": "green", "contradicted": "red", "not shown": "yellow", "not run": "dim"}
ALONE = (
    "Alone: how many problems only the claim's first answer solves, and how many only its second; the random answer is "
    "the first sample. p: McNemar's exact test of these counts over all seeds, if no two seeds share a problem."
)
UNJUDGED = (
    "Programs that count as failing although no test failed: the sandbox could not judge them, or a control showed "
    "that they pass without the right answer."
)
FURTHER = (
    "SFT log-p: the log-probability under the SFT model. The other rules run programs on the inputs of the prompt's "
    "examples, and on inputs made from these, never on the tests. examples: a sample that returns the examples' "
    "values. clusters: a sample of the largest group with equal outputs. cluster mass: the best-scored sample of the "
    "group with the largest sum of the reranker's probabilities. With two names, the rule examples comes first."
)
# Wide enough for the table in a log or a pipe, which have no width of their own.
_PLAIN_WIDTH = 120


def table_rows(results: Results, rules: Iterable[str] = RULES) -> list[tuple[str, list[Cell], Cell]]:
    """One row for each system, those of a policy together: its label, a cell for each rule, its reranker's AUC.

    `SAME`: the row above has the same samples. `ABSENT`: the rule needs a reranker, and the system has none.
    """
    rows, seen = [], set()
    order = [system.policy for system in policies(results)]
    for system in sorted(results.systems, key=lambda system: order.index(system.policy)):
        cells: list[Cell] = [
            SAME if system.policy in seen and rule in POLICY_RULES else results.find(system.system, rule) or ABSENT
            for rule in rules
        ]
        rows.append((system.label, cells, _measure(results, system, "auc")))
        seen.add(system.policy)
    return rows


def further_rows(results: Results) -> list[list[Cell]]:
    """One row for each system: its label, a cell for each of `FURTHER_RULES`. No rows if no such rule has a figure."""
    if not any(figure.rule in FURTHER_RULES for figure in results.figures):
        return []
    return [[label, *cells] for label, cells, _ in table_rows(results, list(FURTHER_RULES))]


def execution_price(results: Results) -> str:
    """What the execution-aware rules cost, and how many problems have inputs, as text; "" if no such rule ran."""
    first = next((system for system in results.systems if system.with_inputs), None)
    if first is None:
        return ""
    covered, problems = sum(first.with_inputs), sum(results.problems)
    runs, seconds = (
        sum(getattr(results.cost(s.system), name) or 0.0 for s in policies(results))
        for name in ("output_runs", "output_seconds")
    )
    return (
        f"The prompts of {covered} of {problems} problems show an input; samples of the others are compared by their "
        f"text. The cost: {runs:.3g} programs and {seconds:.3g} s per problem, for the samples of "
        f"{len(policies(results))} policies together."
    )


def best_text(finding: Finding) -> str:
    """The best answer, by the dev split, against the paper's, in one line."""
    p = f", p {finding.p_value()}" if finding.p_value() else ""
    if finding.difference is None:
        return f"Best on the dev split: {finding.claim.title}, which is the paper's answer."
    return (
        f"Best on the dev split: {finding.claim.title}. Its difference from the paper's answer (the last policy, its "
        f"reranker alone) is {finding.interval()}, above 0 in {finding.seeds_above()} seeds{p}."
    )


def second_iteration_text(results: Results) -> str:
    """What the second iteration's reranker alone is better than, in one line; "" if the run has no second iteration."""
    findings = second_iteration(results)
    if not findings:
        return ""
    label = next(s.label for s in results.systems if s.system == results.second_iteration)
    figure = results.figure(results.second_iteration or "", "reranker").text()
    against = "; ".join(f"{name} {f.interval()}, {f.verdict}" for name, f in findings.items())
    return f"Second iteration, its reranker alone ({label}, chosen on the dev split): {figure}. Against {against}."


def _measure(results: Results, system: System, measure: str) -> Cell:
    if not system.reranker:
        return ABSENT
    return results.discrimination(system.system, measure) or UNDEFINED


def caption(results: Results) -> str:
    """What the table's figures are, in one sentence."""
    problems = " + ".join(str(p) for p in sorted(set(results.problems)))
    seeds = f"mean of {len(results.seeds)} seeds" if len(results.seeds) > 1 else f"seed {results.seeds[0]}"
    return (
        f"Fraction of held-out problems solved by the answer that each rule chooses, {results.samples} samples per "
        f"problem, {problems} problems, {seeds}, with 95% bootstrap intervals over problems."
    )


def print_results(results: Sequence[Results], console: Console | None = None) -> None:
    """Prints each evaluation set's table and claims; without colours or a fixed width if the output is no terminal."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _PLAIN_WIDTH)
    for of_set in results:
        if len(results) > 1:
            console.print(Text(f"\nEvaluation set {of_set.evaluation_set}", style="bold underline"))
        _print_set(of_set, console)


def _print_set(results: Results, console: Console) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("system", min_width=15)
    for name in RULES.values():
        width = max(7, *map(len, name.split()))
        table.add_column(name, justify="right", min_width=width, max_width=width)
    table.add_column("AUC", justify="right", min_width=4, no_wrap=True)
    for label, cells, auc in table_rows(results):
        # The interval is printed below its value, and the AUC has none, so that a row fits into 80 columns.
        value = decimal(auc.value) if isinstance(auc, Estimate) else auc if auc == ABSENT else ""
        table.add_row(Text(label), *map(_stacked, cells), value)
    console.print(table)
    console.print(caption(results), style="dim", highlight=False)
    console.print()
    _print_further(results, console)
    findings = findings_of(results)
    console.print(Text(f"Claims: {tally(findings)}", style="bold"))
    lines = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in ("verdict", "claim", "difference", "seeds", "p"):
        lines.add_column(name)
    for finding in findings:
        if finding.verdict != "not run":
            verdict = Text(finding.verdict, style=VERDICT_STYLES[finding.verdict])
            figures = Text(finding.interval()), finding.seeds_above(), finding.p_value()
            lines.add_row(verdict, finding.claim.title, *figures)
    if lines.row_count:
        console.print(lines)
        console.print(
            "seeds: how many have a difference above 0; p: McNemar's exact test.", style="dim", highlight=False
        )


def _print_further(results: Results, console: Console) -> None:
    if rows := further_rows(results):
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("system", min_width=15)
        for name in FURTHER_RULES.values():
            width = max(7, *map(len, name.split()))
            table.add_column(name, justify="right", min_width=width, max_width=width)
        for label, *cells in rows:
            table.add_row(Text(str(label)), *map(_stacked, cells))
        console.print(table)
        console.print(f"{FURTHER} {execution_price(results)}", style="dim", highlight=False)
        console.print()
    if best := best_finding(results):
        console.print(Text(best_text(best), style="bold"))
        console.print()
    if second := second_iteration_text(results):
        console.print(Text(second, style="bold"))
        console.print()


def _stacked(cell: Cell) -> Text:
    if isinstance(cell, str):
        return Text(cell, style="dim")
    return Text.assemble((decimal(cell.value), "bold"), (f"\n{_short(cell.low)}-{_short(cell.high)}", "dim"))


def _short(value: float) -> str:
    """Three characters of a fraction in [0, 1]: .59, 1.0."""
    text = f"{value:.2f}"
    return "1.0" if text == "1.00" else text[1:]


def policies(results: Results) -> list[System]:
    """The first system of each policy, in order; it represents the policy's samples."""
    first: dict[str, System] = {}
    for system in results.systems:
        first.setdefault(system.policy, system)
    return list(first.values())


def reranked(results: Results) -> list[System]:
    """The systems that have a reranker, in order."""
    return [system for system in results.systems if system.reranker]


def pass_at_k_rows(results: Results) -> list[tuple[str, list[Estimate]]]:
    """One row for each policy: its label, and pass@k for the k of `sample_counts`."""
    counts = sample_counts(results.samples)
    return [(s.policy_label, [results.figure(s.system, "oracle", k) for k in counts]) for s in policies(results)]


def language_rows(results: Results) -> list[tuple[str, list[tuple[Figure, Discrimination | None]]]]:
    """Each policy's greedy answer and random sample, and each reranker's choice: label, figure and AUC by language.

    The last figure is the mean of the languages.
    """
    shown = [(f"{s.policy_label}: {rule}", s.system, rule) for s in policies(results) for rule in ("greedy", "random")]
    shown += [(s.label, s.system, "reranker") for s in reranked(results)]
    rows = []
    for label, name, rule in shown:
        cells = []
        for language in (*results.languages, MEAN):
            auc = results.discrimination(name, "auc", language=language) if rule == "reranker" else None
            cells.append((results.figure(name, rule, language=language), auc))
        rows.append((label, cells))
    return rows


DIVERGENCE_HEADER = ("system", "KL, one sample", "passes", "KL, reranker's choice", "solved")
DIVERGENCE = (
    "KL to the SFT model in nats per completion, estimated from the log-probabilities of this set's samples under both "
    "models. The KL of the reranker's choice includes log n - (n - 1)/n for the choice among n samples, which is an "
    "upper bound if scores tie."
)


def divergence_rows(results: Results) -> list[list[Cell]]:
    """One row for each system whose KL is known, under `DIVERGENCE_HEADER`: each KL, then the fraction solved at it."""
    return [
        [
            s.label,
            *(
                estimate or ABSENT
                for rule in ("random", "reranker")
                for estimate in (results.divergence(s.system, rule), results.find(s.system, rule))
            ),
        ]
        for s in results.systems
        if results.divergence(s.system, "random")
    ]


def cost_rows(results: Results) -> list[tuple[str, Cell, Cost]]:
    """One row for each system: its label, the fraction that its reranker solves, and what that costs."""
    return [(s.label, results.find(s.system, "reranker") or ABSENT, results.cost(s.system)) for s in results.systems]


def unjudged_rows(results: Results) -> list[list[str]]:
    """One row for each policy with programs not judged or caught: its label and both counts, over all seeds."""
    return [
        [s.policy_label, str(sum(s.sandbox_errors)), str(sum(s.caught))]
        for s in policies(results)
        if any(s.sandbox_errors) or any(s.caught)
    ]


UNJUDGED_HEADER = ("policy", "not judged", "caught")


def number_text(value: float | None, form: str) -> str:
    """The number in the given format, or `not measured`."""
    return "not measured" if value is None else f"{value:{form}}"


def measure_texts(results: Results, system: System) -> list[str]:
    """A system's AUC, pairwise accuracy and calibration error; `UNDEFINED` where all its samples passed, or none."""
    return [_text(_measure(results, system, measure)) for measure in MEASURES]


def markdown(results: Sequence[Results]) -> str:
    """Each evaluation set's table with its caption, then pass@k, languages if several, costs and claims."""
    pages = [_markdown(of_set) for of_set in results]
    if len(pages) == 1:
        return pages[0]
    titled = zip(results, pages, strict=True)
    return "\n".join(f"# Evaluation set {of_set.evaluation_set}\n\n{page}" for of_set, page in titled)


def _markdown(results: Results) -> str:
    rules = [[label, *map(_text, cells), _text(auc)] for label, cells, auc in table_rows(results)]
    page = pipes(["system", *RULE_HEADS.values(), "AUC"], rules)
    page += f"\n{caption(results)} `{SAME}`: the same samples as the row above. {ABSENT}: no reranker.\n"

    if rows := further_rows(results):
        page += "\n## Further rules\n\n"
        page += pipes(["system", *FURTHER_HEADS.values()], [list(map(_text, cells)) for cells in rows])
        page += f"\n{FURTHER} {execution_price(results)}\n"
    if best := best_finding(results):
        page += f"\n{best_text(best)}\n"
    if second := second_iteration_text(results):
        page += f"\n{second}\n"

    page += "\n## pass@k\n\n" + pipes(
        ["policy", *(f"k = {k}" for k in sample_counts(results.samples))],
        [[policy, *(e.text() for e in estimates)] for policy, estimates in pass_at_k_rows(results)],
    )
    if len(results.languages) > 1:
        page += "\n## By language\n\n" + pipes(
            ["answer", *results.languages, MEAN],
            [
                [label, *(figure.text() + (f", {decimal(auc.value)}" if auc else "") for figure, auc in cells)]
                for label, cells in language_rows(results)
            ],
        )
        page += "\nFraction solved, with its interval, then the reranker's AUC. Mean: the mean over languages.\n"
    if reranked(results):
        page += "\n## Rerankers\n\n" + pipes(
            ["system", *MEASURES.values()], [[s.label, *measure_texts(results, s)] for s in reranked(results)]
        )
    if rows := divergence_rows(results):
        page += "\n## Quality and KL\n\n" + pipes(DIVERGENCE_HEADER, [list(map(_text, row)) for row in rows])
        page += f"\n{DIVERGENCE}\n"
    page += "\n## Quality and cost\n\n" + pipes(
        [
            "system",
            "solved",
            "tokens per problem",
            "tokens of the chosen",
            "s per problem: drawing, executing",
            "scoring",
        ],
        [
            [
                label,
                _text(solved),
                f"{cost.tokens * results.samples:.0f}",
                ABSENT if cost.chosen_tokens is None else f"{cost.chosen_tokens:.0f}",
                number_text(cost.sampling_seconds, ".3g"),
                ABSENT if solved == ABSENT else number_text(cost.scoring_seconds, ".3g"),
            ]
            for label, solved, cost in cost_rows(results)
        ],
    )
    if unjudged := unjudged_rows(results):
        page += f"\n## Programs not judged\n\n{pipes(UNJUDGED_HEADER, unjudged)}\n{UNJUDGED}\n"
    findings = [f for f in findings_of(results) if f.verdict != "not run"]
    if not findings:
        return page
    page += "\n## Claims\n\n" + pipes(
        ["claim", "this run says", "difference", "seeds > 0", "alone", "p"],
        [[f.claim.title, f.verdict, f.interval(), f.seeds_above(), f.alone(), f.p_value()] for f in findings],
    )
    return f"{page}\n{ALONE}\n"


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.text()


def pipes(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left; ends with a newline."""
    lines = [["---", *["---:"] * (len(header) - 1)], *([_piped(cell) for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in [[_piped(cell) for cell in header], *lines])


def _piped(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split("\n"))
