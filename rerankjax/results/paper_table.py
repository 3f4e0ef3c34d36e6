"""The paper's table with our figures and their 95% intervals beside the paper's, in three formats.

Its rows are systems of up to three runs (`paper.ROWS`); a row that was not run is marked. Below the table are the costs
and the answers to MBPP, which the paper's table lacks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rerankjax.results import markup
from rerankjax.results.paper import LANGUAGE_TITLES, MBPP, MULTIPL_E, ROWS, RUNS, Answer
from rerankjax.results.render import number_text, pipes
from rerankjax.results.results import MEAN, Results
from rerankjax.results.statistics import Estimate

Runs = Mapping[str, Sequence[Results]]  # by a key of `paper.RUNS`; a missing key was not run

NOT_RUN = "not run"
TITLE = "The paper's Table 1, and ours"
CAPTION = (
    "Percentage of MultiPL-E's problems solved: here, with its 95% bootstrap interval over problems, and in the paper "
    "(arXiv 2504.09643, Table 1). The average is the mean of the languages' percentages; ours needs all eight "
    "languages."
)
COST_CAPTION = (
    "The cost of an answer per problem: n samples or one greedy answer are drawn, executed and, if reranked, scored. "
    "Seconds are those of the run and include compilation. The time of one sample is the time of all n, divided by n."
)
MBPP_CAPTION = (
    "Percentage of MBPP's problems solved, with its 95% interval. The paper compares with LEVER on MBPP, but our "
    "source of the paper lacks these figures."
)


@dataclass(frozen=True)
class Line:
    """One row of the table. `here` and `paper` have a value for each language and then the average."""

    label: str
    size: str
    decoding: str
    here: tuple[Estimate | None, ...]
    paper: tuple[float, ...]


def lines(runs: Runs) -> list[Line]:
    """The table's rows in the paper's order; a row that we decode in two ways has a line for each.

    Raises:
      ValueError: a run is unknown.
    """
    unknown = [run for run in runs if run not in RUNS]
    if unknown:
        raise ValueError(f"runs has {unknown[0]!r}; use some of {', '.join(RUNS)}")
    table = []
    for row in ROWS:
        for answer in row.ours or (None,):
            here = [_figure(runs, answer, MULTIPL_E, language) for language in (*LANGUAGE_TITLES, MEAN)]
            decoding = answer.decoding if answer else ""
            table.append(Line(row.model, row.size, decoding, tuple(here), (*row.percent, row.average)))
    return table


def _find_set(runs: Runs, run: str, evaluation_set: str) -> Results | None:
    return next((r for r in runs.get(run, ()) if r.evaluation_set == evaluation_set), None)


def _figure(runs: Runs, answer: Answer | None, evaluation_set: str, language: str | None = None) -> Estimate | None:
    """The answer's figure in one language, in `MEAN` of all eight, or in all problems; None where it was not run."""
    results = _find_set(runs, answer.run, evaluation_set) if answer else None
    if answer is None or results is None or (language == MEAN and set(results.languages) != set(LANGUAGE_TITLES)):
        return None
    # A set of one language has no figures by language, only those of all its problems.
    alone = results.languages == (language,)
    return results.find(answer.system, answer.rule, language=None if alone else language)


def _answers(runs: Runs, evaluation_set: str) -> Iterator[tuple[str, Answer, Results | None]]:
    """Each answer's name, and the results that have it."""
    for row in ROWS:
        for answer in row.ours:
            name = f"{row.size} {answer.decoding}" if answer.decoding else row.model
            results = _find_set(runs, answer.run, evaluation_set)
            yield name, answer, results if results and results.find(answer.system, answer.rule) else None


COST_HEADER = ("answer", "n", "problems", "tokens", "seconds")
MBPP_HEADER = ("answer", "solved", *COST_HEADER[1:])


def cost_rows(runs: Runs) -> list[list[str]]:
    """One row for each answer to MultiPL-E that was run, under `COST_HEADER`."""
    return [[name, *_cost(results, answer)] for name, answer, results in _answers(runs, MULTIPL_E) if results]


def mbpp_rows(runs: Runs) -> list[list[str]]:
    """One row for each answer to MBPP, run or not, under `MBPP_HEADER`."""
    return [
        [name, _text(_figure(runs, answer, MBPP)), *(_cost(results, answer) if results else [""] * 4)]
        for name, answer, results in _answers(runs, MBPP)
    ]


def _cost(results: Results, answer: Answer) -> list[str]:
    cost, n = results.cost(answer.system), results.samples
    match answer.rule:
        case "greedy":
            drawn, tokens, seconds = 1, cost.greedy_tokens, cost.greedy_seconds
        case "random":
            sampling = cost.sampling_seconds
            drawn, tokens, seconds = 1, cost.tokens, None if sampling is None else sampling / n
        case _:
            parts = cost.sampling_seconds, cost.scoring_seconds
            drawn, tokens, seconds = n, cost.tokens * n, None if None in parts else sum(filter(None, parts))
    problems = " + ".join(str(p) for p in sorted(set(results.problems)))
    return [str(drawn), problems, number_text(tokens, ".0f"), number_text(seconds, ".3g")]


def provenance(runs: Runs) -> str:
    """Which config and seeds each run has."""
    parts = []
    for run in RUNS:
        if results := runs.get(run):
            seeds = ", ".join(map(str, results[0].seeds))
            parts.append(f"{run}: config {results[0].config_digest}, seeds {seeds}")
        else:
            parts.append(f"{run}: {NOT_RUN}")
    return f"Runs by the generator's size: {'; '.join(parts)}."


_HEADER = ("model", "size", "decoding", *LANGUAGE_TITLES.values(), "avg")


def print_table(runs: Runs, console: Console | None = None) -> None:
    """Prints the table in 80 columns: in each cell our figure, its interval in whole percent, and the paper's."""
    console = console or Console()
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", ratio=1)
    for name in (*LANGUAGE_TITLES.values(), "avg"):
        table.add_column(name, justify="right", min_width=5, no_wrap=True)
    for line in lines(runs):
        label = Text.assemble(line.label, (f"\n{' '.join(filter(None, (line.size, line.decoding)))}", "dim"))
        table.add_row(label, *map(_stacked, line.here, line.paper))
    console.print(table)
    captions = f"{CAPTION} Each cell: our figure, its interval, the paper's figure.\n{provenance(runs)}"
    console.print(captions, style="dim", highlight=False)
    for header, rows, caption in _tables_below(runs):
        console.print()
        below = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for name in header:
            first = name == header[0]
            below.add_column(name, justify="left" if first else "right", no_wrap=not first, overflow="fold")
        for row in rows:
            below.add_row(*map(Text, row))
        console.print(below)
        console.print(caption, style="dim", highlight=False)


def _tables_below(runs: Runs) -> Iterator[tuple[Sequence[str], list[list[str]], str]]:
    """Header, rows and caption of the tables of costs and of MBPP, where anything was run."""
    if costs := cost_rows(runs):
        yield COST_HEADER, costs, COST_CAPTION
    if any(results for _, _, results in _answers(runs, MBPP)):
        yield MBPP_HEADER, mbpp_rows(runs), MBPP_CAPTION


def _stacked(here: Estimate | None, paper: float) -> Text:
    if here is None:
        return Text.assemble(("not\nrun", "yellow"), (f"\n{paper:.1f}", "dim"))
    low, high = (round(100 * value) for value in (here.low, here.high))
    return Text.assemble((_percent(here.value), "bold"), f"\n{low}-{high}", (f"\n{paper:.1f}", "dim"))


_NO_ASSUMPTIONS: Mapping[str, str] = {}


def markdown(runs: Runs, assumptions: Mapping[str, str] = _NO_ASSUMPTIONS) -> str:
    """`ours [interval] / the paper's` in each cell; below it costs, MBPP and assumptions (config field: reason)."""
    rows = [
        [line.label, line.size, line.decoding, *(f"{_text(h)} / {p:.1f}" for h, p in _cells(line))]
        for line in lines(runs)
    ]
    page = f"{pipes(_HEADER, rows)}\n{CAPTION} Each cell: our figure / the paper's.\n\n{provenance(runs)}\n"
    for header, below, caption in _tables_below(runs):
        page += f"\n{pipes(header, below)}\n{caption}\n"
    if assumptions:
        page += "\n## Assumptions\n\n" + "".join(f"- `{field}`: {why}\n" for field, why in assumptions.items())
    return page


def page(runs: Runs, assumptions: Mapping[str, str] = _NO_ASSUMPTIONS) -> str:
    """A whole HTML page that fetches nothing, with the same tables."""
    rows = [
        [line.label, line.size, line.decoding, *(_html_cell(h, p) for h, p in _cells(line))] for line in lines(runs)
    ]
    caption = f"{CAPTION} Each cell: our figure, its interval, and the paper's figure."
    body = f"<h1>{TITLE}</h1>\n" + markup.table("figures dense paper", _HEADER, rows)
    body += f'<p class="note">{caption}</p><p class="note">{markup.text(provenance(runs))}</p>\n'
    for header, below, caption in _tables_below(runs):
        body += markup.table("figures", header, below) + f'<p class="note">{caption}</p>\n'
    if assumptions:
        reasons = [[markup.text(field), markup.text(why)] for field, why in assumptions.items()]
        body += markup.section("Assumptions", markup.table("reasons", ["config field", "why"], reasons))
    return markup.page("rerankjax: the paper's Table 1", body)


def _cells(line: Line) -> list[tuple[Estimate | None, float]]:
    return list(zip(line.here, line.paper, strict=True))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _text(here: Estimate | None) -> str:
    return NOT_RUN if here is None else f"{_percent(here.value)} [{_percent(here.low)}, {_percent(here.high)}]"


def _html_cell(here: Estimate | None, paper: float) -> str:
    if here is None:
        return f"<small>{NOT_RUN}</small><small>paper {paper:.1f}</small>"
    interval = f"{_percent(here.low)} to {_percent(here.high)}"
    return f"{_percent(here.value)}<small>{interval}</small><small>paper {paper:.1f}</small>"
