"""The paper's table with ours in it: each cell's figure and 95% interval beside the paper's, in four formats.

What was not run says so, and what did run stands below: with which models, on how many problems, at what cost.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rerankjax.results.cells import Cell, CellError, average
from rerankjax.results.paper import LANGUAGES, ROWS, RUNS
from rerankjax.results.statistics import Estimate

NOT_RUN = "not run"
CAPTION = (
    "Share of MultiPL-E's problems solved, in percent: here, with its 95% bootstrap interval over problems, and in "
    "the paper (arXiv 2504.09643, Table 1). The average is the mean of the languages' shares, and here is one of "
    "all eight."
)


@dataclass(frozen=True)
class Line:
    """One row of the table. `here` and `paper` have a value for each language and then the average."""

    label: str
    size: str
    decoding: str
    here: tuple[Estimate | None, ...]
    paper: tuple[float, ...]


def lines(cells: Sequence[Cell]) -> list[Line]:
    """The table's rows in the paper's order; a row that is run in several ways has a line for each way.

    Raises:
      CellError: two cells are of one row and language.
    """
    found: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        if (cell.row, cell.language) in found:
            raise CellError(f"row = {cell.row!r}, language = {cell.language!r} are given twice; give one cell")
        found[cell.row, cell.language] = cell
    table = []
    for name, row in ROWS.items():
        runs = [run for run, of in RUNS.items() if of == name]
        for run in runs or [name]:
            of_run = [found.get((run, language)) for language in LANGUAGES]
            shares = [cell.share if cell else None for cell in of_run]
            complete = [cell for cell in of_run if cell]
            mean = average(complete) if len(complete) == len(LANGUAGES) else None
            decoding = run.removeprefix(f"{name}-") if len(runs) > 1 else ""
            table.append(Line(row.model, row.size, decoding, (*shares, mean), (*row.percent, row.average)))
    return table


def costs(cells: Sequence[Cell]) -> list[tuple[str, list[str]]]:
    """For each run: its name; languages and problems, samples, tokens and seconds a problem; the models."""
    rows = []
    for run in RUNS:
        of_run = [cell for cell in cells if cell.row == run]
        if not of_run:
            continue
        problems = sum(cell.problems for cell in of_run)
        times = [cell.seconds for cell in of_run if cell.seconds is not None]
        seconds = f"{sum(times) / problems:.3g}" if len(times) == len(of_run) else "not measured"
        figures = [
            f"{len(of_run)} of {len(LANGUAGES)}",
            str(problems),
            ", ".join(str(n) for n in sorted({cell.n for cell in of_run})),
            f"{sum(cell.tokens for cell in of_run) / problems:.0f}",
            seconds,
            "; ".join(dict.fromkeys(cell.model for cell in of_run)),
        ]
        rows.append((run, figures))
    return rows


COST_HEADER = ("run", "languages", "problems", "n", "tokens a problem", "seconds a problem", "models")
_HEADER = ("model", "size", "decoding", *LANGUAGES.values(), "avg")


def print_table(cells: Sequence[Cell], console: Console | None = None) -> None:
    """Prints the table in 80 columns: in each cell our figure, its interval in whole percent, and the paper's."""
    console = console or Console()
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", ratio=1)
    for name in (*LANGUAGES.values(), "avg"):
        table.add_column(name, justify="right", min_width=5, no_wrap=True)
    for line in lines(cells):
        label = Text.assemble(line.label, (f"\n{' '.join(filter(None, (line.size, line.decoding)))}", "dim"))
        table.add_row(label, *map(_stacked, line.here, line.paper))
    console.print(table)
    console.print(f"{CAPTION} Each cell: ours, our interval, the paper's.", style="dim", highlight=False)
    if not cells:
        return
    below = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in COST_HEADER:
        below.add_column(name, no_wrap=name == COST_HEADER[0], overflow="fold")
    for run, figures in costs(cells):
        below.add_row(run, *map(Text, figures))
    console.print(below)


def _stacked(here: Estimate | None, paper: float) -> Text:
    if here is None:
        return Text.assemble(("not\nrun", "yellow"), (f"\n{paper:.1f}", "dim"))
    low, high = (round(100 * value) for value in (here.low, here.high))
    return Text.assemble((_percent(here.value), "bold"), f"\n{low}-{high}", (f"\n{paper:.1f}", "dim"))


def markdown(cells: Sequence[Cell]) -> str:
    """`ours [interval] / the paper's` in each cell."""
    rows = [
        [line.label, line.size, line.decoding, *(f"{_text(h)} / {p:.1f}" for h, p in _cells(line))]
        for line in lines(cells)
    ]
    page = _pipes([*_HEADER], ["---"] * 3, rows) + f"\n{CAPTION} Each cell: ours / the paper's.\n"
    if cells:
        page += "\n" + _pipes([*COST_HEADER], ["---"], [[run, *figures] for run, figures in costs(cells)])
    return page


def latex(cells: Sequence[Cell]) -> str:
    """A `table*` that needs booktabs. Each row of the paper has lines for ours, our interval, and the paper's."""
    groups = []
    for line in lines(cells):
        here = [_small(NOT_RUN) if h is None else _percent(h.value) for h in line.here]
        intervals = ["" if h is None else _small(f"{_percent(h.low)}--{_percent(h.high)}") for h in line.here]
        group = [[*map(_escaped, (line.label, line.size, line.decoding)), *here]]
        group += [["", "", "", *intervals]] if any(line.here) else []
        group += [[r"\quad paper", "", "", *(f"{percent:.1f}" for percent in line.paper)]]
        groups.append("".join(" & ".join(row) + " \\\\\n" for row in group))
    body = "\\addlinespace\n".join(groups)
    header = " & ".join(_escaped(name) for name in _HEADER)
    notes = "".join(
        f" {_escaped(run)}: {_escaped(figures[-1])}, $n$ = {_escaped(figures[2])}." for run, figures in costs(cells)
    )
    return (
        "\\begin{table*}\n\\centering\\small\\setlength{\\tabcolsep}{3pt}\n"
        f"\\begin{{tabular}}{{lll{'r' * (len(LANGUAGES) + 1)}}}\n\\toprule\n{header} \\\\\n\\midrule\n{body}"
        f"\\bottomrule\n\\end{{tabular}}\n\\caption{{{_escaped(CAPTION)}{notes}}}\n\\end{{table*}}\n"
    )


def page(cells: Sequence[Cell]) -> str:
    """A whole HTML page that fetches nothing."""
    rows = ""
    for line in lines(cells):
        head = "".join(f"<th>{html.escape(part)}</th>" for part in (line.label, line.size, line.decoding))
        shown = "".join(f"<td>{_html_cell(h, p)}</td>" for h, p in _cells(line))
        rows += f"<tr>{head}{shown}</tr>\n"
    ran = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (run, *figures)) + "</tr>\n"
        for run, figures in costs(cells)
    )
    cost = f"<table class='cost'><thead>{_html_header(COST_HEADER)}</thead><tbody>{ran}</tbody></table>" if ran else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>rerankjax: the paper's Table 1</title>
<style>
{_STYLE}</style>
</head>
<body><main><h1>The paper's Table 1, and ours</h1>
<div class="wide"><table><thead>{_html_header(_HEADER)}</thead>
<tbody>{rows}</tbody></table></div>
<p>{html.escape(CAPTION)} In each cell: ours, its interval, and behind <q>paper</q> the paper's.</p>
{cost}</main></body>
</html>
"""


_STYLE = """:root { color-scheme: light dark; --ink: #1d2129; --muted: #626a76; --grid: #e3e5e8; --page: #fbfbfa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --muted: #9aa2ae; --grid: #31363f; --page: #14161a; }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top; }
thead th { color: var(--muted); font-size: .8rem; }
tbody th { font-weight: 500; }
table:not(.cost) td, table:not(.cost) th:nth-child(n + 4) { text-align: right; white-space: nowrap; }
small { display: block; color: var(--muted); font-size: .76rem; }
.absent { color: var(--muted); font-style: italic; }
p { max-width: 74ch; color: var(--muted); font-size: .9rem; }
.cost { font-size: .88rem; }
"""


def _cells(line: Line) -> list[tuple[Estimate | None, float]]:
    return list(zip(line.here, line.paper, strict=True))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _text(here: Estimate | None) -> str:
    return NOT_RUN if here is None else f"{_percent(here.value)} [{_percent(here.low)}, {_percent(here.high)}]"


def _html_cell(here: Estimate | None, paper: float) -> str:
    if here is None:
        return f'<span class="absent">{NOT_RUN}</span><small>paper {paper:.1f}</small>'
    interval = f"{_percent(here.low)} to {_percent(here.high)}"
    return f"<b>{_percent(here.value)}</b><small>{interval}</small><small>paper {paper:.1f}</small>"


def _html_header(names: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in names) + "</tr>"


def _small(words: str) -> str:
    return rf"{{\scriptsize {words}}}"


def _escaped(words: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "#$%&_{}" else c) for c in words)


def _pipes(header: Sequence[str], left: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = [*left, *["---:"] * (len(header) - len(left))]
    table = [header, marks, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join("| " + " | ".join(row) + " |\n" for row in table)
